//! A container image with one layer, written as the archive that `ctr image import` and `docker load` read: an OCI image
//! layout (github.com/opencontainers/image-spec, image-layout.md). No container tool and no network is needed.
//!
//! The same files give the same bytes: every time stamp is 0.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What an image holds, and how it is started.
pub struct Image<'i> {
    /// Such as `localhost/leaktrace:0.1.0`.
    pub name: &'i str,
    /// `amd64` or `arm64`.
    pub architecture: &'i str,
    /// Path without a leading slash, content, file capabilities. All are executable.
    pub files: &'i [(&'i str, &'i [u8], Option<FileCapabilities>)],
    /// Program and first arguments.
    pub entrypoint: &'i [&'i str],
    /// Arguments that a user may replace.
    pub arguments: &'i [&'i str],
    /// `UID:GID`.
    pub user: &'i str,
}

/// Capabilities that a program has whoever starts it: one bit each, both permitted and effective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileCapabilities(pub u64);

impl FileCapabilities {
    /// The attribute `security.capability` as the kernel stores it, revision 2 (include/uapi/linux/capability.h,
    /// `struct vfs_cap_data`).
    fn bytes(self) -> Vec<u8> {
        /// `VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE`.
        const MAGIC: u32 = 0x0200_0001;
        let bits = self.0.to_le_bytes();
        let (low, high) = bits.split_at(4);
        let none = [0_u8; 4];
        [&MAGIC.to_le_bytes(), low, &none, high, &none].concat()
    }
}

impl Image<'_> {
    /// Writes the archive.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let layer = self.layer()?;
        let config = self.config(&layer)?;
        let layer_blob = Blob::new("application/vnd.oci.image.layer.v1.tar", layer);
        let config_blob = Blob::new("application/vnd.oci.image.config.v1+json", config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config_blob.descriptor(),
            "layers": [layer_blob.descriptor()],
        });
        let manifest = serde_json::to_vec(&manifest)?;
        let manifest = Blob::new("application/vnd.oci.image.manifest.v1+json", manifest);
        let mut entry = manifest.descriptor();
        entry["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name.rsplit(':').next().unwrap_or("latest"),
        });
        entry["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [entry],
        });
        // What `docker load` looked for before it knew image layouts.
        let old = json!([{
            "Config": config_blob.path(),
            "RepoTags": [self.name],
            "Layers": [layer_blob.path()],
        }]);

        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let mut archive = Builder::new(file);
        folder(&mut archive, "blobs/")?;
        folder(&mut archive, "blobs/sha256/")?;
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        add(&mut archive, "oci-layout", layout, 0o644)?;
        let index = serde_json::to_vec(&index)?;
        add(&mut archive, "index.json", &index, 0o644)?;
        let old = serde_json::to_vec(&old)?;
        add(&mut archive, "manifest.json", &old, 0o644)?;
        for blob in [&manifest, &config_blob, &layer_blob] {
            add(&mut archive, &blob.path(), &blob.bytes, 0o644)?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }

    /// The files with the folders that they lie in.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        let mut made = Vec::new();
        for (path, content, capabilities) in self.files {
            for (index, _) in path.match_indices('/') {
                let parent = format!("{}/", &path[..index]);
                if !made.contains(&parent) {
                    folder(&mut archive, &parent)?;
                    made.push(parent);
                }
            }
            if let Some(capabilities) = capabilities {
                let bytes = capabilities.bytes();
                let attribute = ("SCHILY.xattr.security.capability", bytes.as_slice());
                archive.append_pax_extensions([attribute])?;
            }
            add(&mut archive, path, content, 0o755)?;
        }
        Ok(archive.into_inner()?)
    }

    fn config(&self, layer: &[u8]) -> Result<Vec<u8>> {
        let config = json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": {
                "User": self.user,
                "Entrypoint": self.entrypoint,
                "Cmd": self.arguments,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hash(layer))]},
            "history": [{"created_by": "cargo xtask image"}],
        });
        Ok(serde_json::to_vec(&config)?)
    }
}

/// A piece of an image, named by its hash.
struct Blob {
    media_type: &'static str,
    hash: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            media_type,
            hash: hash(&bytes),
            bytes,
        }
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hash)
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": format!("sha256:{}", self.hash),
            "size": self.bytes.len(),
        })
    }
}

fn hash(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn folder<W: std::io::Write>(archive: &mut Builder<W>, path: &str) -> Result<()> {
    let mut header = header(0, 0o755);
    header.set_entry_type(EntryType::Directory);
    archive.append_data(&mut header, path, std::io::empty())?;
    Ok(())
}

fn add<W: std::io::Write>(
    archive: &mut Builder<W>,
    path: &str,
    content: &[u8],
    mode: u32,
) -> Result<()> {
    let mut header = header(content.len() as u64, mode);
    header.set_entry_type(EntryType::Regular);
    archive.append_data(&mut header, path, content)?;
    Ok(())
}

/// Root's, of the year 1970.
fn header(size: u64, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_capabilities_are_stored_as_setcap_does() {
        // `setcap cap_sys_ptrace,cap_bpf=ep FILE; getfattr -e hex -n security.capability FILE`
        let stored = FileCapabilities(1 << 19 | 1 << 39).bytes();
        assert_eq!(
            stored,
            [
                1, 0, 0, 2, 0, 0, 8, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn the_same_files_give_the_same_image() {
        let image = Image {
            name: "localhost/one:1",
            architecture: "amd64",
            files: &[("usr/bin/one", b"content", Some(FileCapabilities(1)))],
            entrypoint: &["/usr/bin/one"],
            arguments: &[],
            user: "65532:65532",
        };
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        for path in &paths {
            image.write(path).unwrap();
        }
        let [first, second] = paths.map(|path| std::fs::read(path).unwrap());
        assert_eq!(first, second);
        let mut archive = tar::Archive::new(first.as_slice());
        let names = archive.entries().unwrap();
        let names: Vec<_> = names
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names.len(), 8, "{names:?}");
        assert!(names.contains(&"index.json".to_owned()), "{names:?}");
    }
}
