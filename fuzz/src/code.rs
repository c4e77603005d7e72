//! Functions of a program as bytes: what the finders of probe sites and globals look at.
//!
//! Form: machine (0 amd64, 1 arm64), minor release; then for each function the length of its name (a byte), the name,
//! its entry (4 bytes), the length of its code (2 bytes), the code. One without a name and code says from where on nothing
//! is in the file, only zeroes in memory.

use leaktrace::address::{FileOffset, VirtAddr};
use leaktrace::resolve::Arch;
use leaktrace::resolve::code::{CodeView, Function};

use crate::{number, take};

/// A few functions, and nothing else.
pub struct Functions {
    arch: Arch,
    /// The minor release that they claim to be from.
    pub go_minor: u32,
    functions: Vec<(String, u64, Vec<u8>)>,
    /// Where the variables begin that are zero at the start.
    zero_from: u64,
}

impl Functions {
    /// Reads the form.
    #[must_use]
    pub fn decode(mut data: &[u8]) -> Self {
        let data = &mut data;
        let arch = match number(data, 1) {
            1 => Arch::Arm64,
            _ => Arch::Amd64,
        };
        let go_minor = 18 + u32::from(take(data, 1).first().copied().unwrap_or(0)) % 12;
        let mut functions = Vec::new();
        let mut zero_from = u64::MAX;
        while !data.is_empty() {
            let length = number(data, 1);
            let name = take(data, usize::try_from(length).unwrap_or(0));
            let entry = number(data, 4);
            let length = number(data, 2);
            let code = take(data, usize::try_from(length).unwrap_or(0));
            if name.is_empty() && code.is_empty() {
                zero_from = entry;
                continue;
            }
            let name = String::from_utf8_lossy(name).into_owned();
            functions.push((name, entry, code.to_vec()));
        }
        Self {
            arch,
            go_minor,
            functions,
            zero_from,
        }
    }

    /// Writes the form.
    #[must_use]
    pub fn encode(
        arch: Arch,
        go_minor: u32,
        functions: &[Function],
        zero_from: VirtAddr,
    ) -> Vec<u8> {
        let minor = u8::try_from(go_minor.saturating_sub(18)).unwrap_or(0);
        let mut bytes = vec![u8::from(arch == Arch::Arm64), minor];
        for function in functions {
            let name = function.name.as_bytes();
            let code = &function.code;
            let (Ok(name_length), Ok(entry), Ok(length)) = (
                u8::try_from(name.len()),
                u32::try_from(function.entry.0),
                u16::try_from(code.len()),
            ) else {
                continue;
            };
            bytes.push(name_length);
            bytes.extend(name);
            bytes.extend(entry.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend(code);
        }
        if let Ok(zero_from) = u32::try_from(zero_from.0) {
            bytes.push(0);
            bytes.extend(zero_from.to_le_bytes());
            bytes.extend(0_u16.to_le_bytes());
        }
        bytes
    }
}

impl CodeView for Functions {
    fn arch(&self) -> Arch {
        self.arch
    }

    fn function(&self, name: &str) -> Option<Function> {
        let (name, entry, code) = self.functions.iter().find(|(known, ..)| known == name)?;
        Some(Function {
            name: name.clone(),
            entry: VirtAddr(*entry),
            code: code.clone(),
        })
    }

    fn function_at(&self, address: VirtAddr) -> Option<(String, VirtAddr)> {
        let (name, entry, _) = self.functions.iter().find(|(_, entry, code)| {
            let into = address.0.checked_sub(*entry);
            into.is_some_and(|into| into < code.len() as u64)
        })?;
        Some((name.clone(), VirtAddr(*entry)))
    }

    fn file_offset(&self, address: VirtAddr) -> Option<FileOffset> {
        (address.0 < self.zero_from).then_some(FileOffset(address.0))
    }

    fn symbol(&self, _: &str) -> Option<(VirtAddr, u64)> {
        None
    }
}
