//! Writes a small ELF executable from pieces.

/// Flags of a segment.
pub const EXECUTABLE: u32 = 5;
/// Flags of a segment.
pub const READABLE: u32 = 4;
/// Flags of a segment.
pub const WRITABLE: u32 = 6;

/// What goes into the file.
#[derive(Default)]
pub struct ElfFile {
    /// For AArch64, else x86-64.
    pub arm64: bool,
    /// `ET_DYN`.
    pub pie: bool,
    /// Where the headers themselves are loaded; 0 when they are not.
    pub headers: u64,
    /// What is loaded.
    pub segments: Vec<Segment>,
    /// Further program headers: kind, and the index of the segment that they describe.
    pub marks: Vec<(u32, usize)>,
    /// The section table; none when empty.
    pub sections: Vec<Section>,
}

/// A `PT_LOAD`.
pub struct Segment {
    /// Linked address.
    pub address: u64,
    /// `PF_*`.
    pub flags: u32,
    /// Contents.
    pub bytes: Vec<u8>,
}

/// A section with contents of its own, or one that names an address in a segment.
pub struct Section {
    /// Name.
    pub name: &'static str,
    /// `SHT_*`.
    pub kind: u32,
    /// `SHF_*`.
    pub flags: u64,
    /// Linked address; 0 when it is not loaded.
    pub address: u64,
    /// Index of the section that it refers to (the first one here has 1).
    pub link: u32,
    /// Contents.
    pub bytes: Vec<u8>,
}

impl Section {
    /// A section of bytes that are not loaded.
    #[must_use]
    pub fn unloaded(name: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            name,
            kind: 1,
            flags: 0,
            address: 0,
            link: 0,
            bytes,
        }
    }

    /// The name of a place in a segment.
    #[must_use]
    pub fn named(name: &'static str, address: u64) -> Self {
        Self {
            address,
            ..Self::unloaded(name, Vec::new())
        }
    }
}

impl ElfFile {
    /// The file.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        const HEADER: usize = 64;
        const PROGRAM_HEADER: usize = 56;
        let loaded = usize::from(self.headers != 0);
        let program_headers = self.segments.len() + self.marks.len() + loaded;
        let mut contents = vec![0; HEADER + PROGRAM_HEADER * program_headers];
        let mut headers = Vec::new();
        let mut places = Vec::new();
        if self.headers != 0 {
            let length = contents.len() as u64;
            program_header(&mut headers, 1, READABLE, self.headers, 0, length);
        }
        for segment in &self.segments {
            let place = contents.len();
            contents.extend(&segment.bytes);
            places.push(place);
            let length = segment.bytes.len() as u64;
            program_header(
                &mut headers,
                1,
                segment.flags,
                segment.address,
                place as u64,
                length,
            );
        }
        for (kind, index) in &self.marks {
            let segment = &self.segments[*index];
            let length = segment.bytes.len() as u64;
            let place = places[*index] as u64;
            program_header(
                &mut headers,
                *kind,
                segment.flags,
                segment.address,
                place,
                length,
            );
        }
        let section_table = self.write_sections(&mut contents);
        let (table_at, section_count) = section_table;
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(16, 0);
        let kind: u16 = if self.pie { 3 } else { 2 };
        let machine: u16 = if self.arm64 { 183 } else { 62 };
        header.extend(kind.to_le_bytes());
        header.extend(machine.to_le_bytes());
        header.extend(1_u32.to_le_bytes());
        let entry = self.segments.first().map_or(0, |segment| segment.address);
        header.extend(entry.to_le_bytes());
        header.extend((HEADER as u64).to_le_bytes());
        header.extend((table_at as u64).to_le_bytes());
        header.extend(0_u32.to_le_bytes());
        for half in [HEADER, PROGRAM_HEADER, program_headers, 64, section_count] {
            header.extend(short(half));
        }
        header.extend(short(section_count.saturating_sub(1)));
        header.extend(headers);
        contents[..header.len()].copy_from_slice(&header);
        contents
    }

    /// Appends the sections' contents, their names and their table; answers where the table is and how many it has.
    fn write_sections(&self, contents: &mut Vec<u8>) -> (usize, usize) {
        if self.sections.is_empty() {
            return (0, 0);
        }
        let mut names = vec![0];
        let mut table = vec![0; 64];
        let mut entry = |section: &Section, place: usize, size: usize, names_at: usize| {
            table.extend(word32(names_at));
            table.extend(section.kind.to_le_bytes());
            table.extend(section.flags.to_le_bytes());
            table.extend(section.address.to_le_bytes());
            table.extend((place as u64).to_le_bytes());
            table.extend((size as u64).to_le_bytes());
            table.extend(section.link.to_le_bytes());
            table.extend([0; 20]);
        };
        for section in &self.sections {
            let place = contents.len();
            contents.extend(&section.bytes);
            entry(section, place, section.bytes.len(), names.len());
            names.extend(section.name.as_bytes());
            names.push(0);
        }
        let own_name = names.len();
        names.extend(b".shstrtab\0");
        let mut last = Section::unloaded(".shstrtab", Vec::new());
        last.kind = 3;
        entry(&last, contents.len(), names.len(), own_name);
        contents.extend(&names);
        let place = contents.len();
        contents.extend(table);
        (place, self.sections.len() + 2)
    }
}

fn program_header(
    headers: &mut Vec<u8>,
    kind: u32,
    flags: u32,
    address: u64,
    place: u64,
    length: u64,
) {
    headers.extend(kind.to_le_bytes());
    headers.extend(flags.to_le_bytes());
    for word in [place, address, address, length, length, 8] {
        headers.extend(word.to_le_bytes());
    }
}

/// A number as 16 bits; a file with more headers than that is not written here.
fn short(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes()
}

fn word32(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}
