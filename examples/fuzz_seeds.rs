//! Small images of all kinds, as seeds of the fuzz targets `image` and `erofs`, with their EROFS
//! metadata if that is wanted: `cargo run --example fuzz_seeds DIRECTORY [metadata]`.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use bfc::format::{Compression, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG};
use bfc::rootfs::format::LOCATOR_LEN;
use bfc::rootfs::{Attr, Xattr};
use bfc::writer::WriteOptions;
use lxcri_fs::build::sources::{self, Platform, SourceImage, SourceLayer, TarSource};
use lxcri_fs::build::{BuildOptions, MAX_SIZE, build};
use lxcri_fs::erofs::{self, Inodes, Layout};
use lxcri_fs::error::Io;
use lxcri_fs::layer::tar::{Body, Writer};

#[path = "../bfc/tests/forge/mend.rs"]
mod mend;

/// Short frames, so that a small file has several.
const FRAME_LOG2: u8 = 12;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("which directory?")?;
    let dir = Path::new(&dir);
    let with_metadata = std::env::args_os().nth(2).is_some();
    std::fs::create_dir_all(dir)?;
    // The key that the fuzz target has.
    let key = bfc::Key::from_slice(&[0; 32])?;
    let plain = WriteOptions {
        compression: Compression::None,
        frame_log2: FRAME_LOG2,
        ..WriteOptions::default()
    };
    let zstd = WriteOptions {
        compression: Compression::Zstd,
        ..plain.clone()
    };
    let sealed = WriteOptions {
        key: Some((key, [0; 32])),
        ..zstd.clone()
    };
    for (name, write) in [("stored", plain), ("zstd", zstd), ("encrypted", sealed)] {
        image(&dir.join(name), &write, vec![base()?])?;
        image(
            &dir.join(format!("{name}-layers")),
            &write,
            vec![base()?, upper()?],
        )?;
        for kind in [name, &format!("{name}-layers")] {
            // Without its section, it is a plain v1 image.
            let mut bytes = std::fs::read(dir.join(kind))?;
            let locator = mend::index_range(&bytes).ok_or("no index")?.end - LOCATOR_LEN;
            bytes[locator..locator + 8].fill(0);
            mend::mend(&mut bytes);
            std::fs::write(dir.join(format!("{kind}-v1")), bytes)?;
            if with_metadata && name != "encrypted" {
                metadata(&dir.join(kind))?;
                metadata(&dir.join(format!("{kind}-v1")))?;
            }
        }
    }
    if with_metadata {
        // A tree, as the target understands it: any bytes will do.
        let items = (0..1200_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8);
        let bytes: Vec<u8> = b"TREE".iter().copied().chain(items).collect();
        std::fs::write(dir.join("tree"), bytes)?;
    }
    Ok(())
}

/// Writes the metadata of an image beside it.
fn metadata(image: &Path) -> Result<(), Box<dyn Error>> {
    let rootfs = lxcri_fs::image::open(image, None)?;
    let layout = Layout::of(rootfs.section(), 4096)?;
    for form in [Inodes::Short, Inodes::Long] {
        let bytes = erofs::write(&rootfs, &layout, form)?;
        std::fs::write(image.with_extension(format!("{form:?}")), bytes)?;
    }
    Ok(())
}

fn attr(mode: u32) -> Attr {
    Attr {
        mode,
        mtime_s: 1_700_000_000,
        ..Attr::default()
    }
}

fn with_xattrs(mode: u32) -> Attr {
    let xattr = |name: &[u8], value: &[u8]| Xattr {
        name: name.to_vec(),
        value: value.to_vec(),
    };
    Attr {
        xattrs: vec![
            xattr(b"user.a", b"value"),
            xattr(b"security.capability", &[1, 0, 0, 2, 0, 0, 0, 0]),
        ],
        ..attr(mode)
    }
}

fn base() -> std::io::Result<Vec<u8>> {
    let lines: Vec<u8> = (0..600)
        .flat_map(|n| format!("line {n}\n").into_bytes())
        .collect();
    let mut tar = Writer::new(Vec::new());
    tar.append(b"", &attr(S_IFDIR | 0o755), Body::None)?;
    tar.append(b"dir", &with_xattrs(S_IFDIR | 0o700), Body::None)?;
    tar.append(
        b"dir/small",
        &attr(S_IFREG | 0o4755),
        Body::File(6, &mut &b"small\n"[..]),
    )?;
    tar.append(
        b"dir/frames",
        &with_xattrs(S_IFREG | 0o644),
        Body::File(lines.len() as u64, &mut &lines[..]),
    )?;
    tar.append(
        b"dir/empty",
        &attr(S_IFREG | 0o600),
        Body::File(0, &mut std::io::empty()),
    )?;
    tar.append(b"hard", &attr(S_IFREG), Body::HardLink(b"dir/small"))?;
    tar.append(b"link", &attr(S_IFLNK | 0o777), Body::Symlink(b"dir/small"))?;
    tar.append(b"null", &attr(S_IFCHR | 0o666), Body::Device(1, 3))?;
    tar.append(b"fifo", &attr(S_IFIFO | 0o600), Body::None)?;
    tar.append(
        b"gone/old",
        &attr(S_IFREG | 0o600),
        Body::File(3, &mut &b"old"[..]),
    )?;
    tar.finish()
}

fn upper() -> std::io::Result<Vec<u8>> {
    let mut tar = Writer::new(Vec::new());
    tar.append(
        b".wh.hard",
        &attr(S_IFREG),
        Body::File(0, &mut std::io::empty()),
    )?;
    tar.append(
        b"gone/.wh..wh..opq",
        &attr(S_IFREG),
        Body::File(0, &mut std::io::empty()),
    )?;
    tar.append(
        b"dir/small",
        &attr(S_IFREG | 0o644),
        Body::File(4, &mut &b"new\n"[..]),
    )?;
    tar.append(b"dir/again", &attr(S_IFREG), Body::HardLink(b"dir/frames"))?;
    tar.finish()
}

struct Bytes(Vec<u8>);

impl TarSource for Bytes {
    fn write_to(
        self: Box<Self>,
        out: &mut dyn Write,
        _: &(dyn Fn(u64) + Sync),
    ) -> lxcri_fs::build::Result<()> {
        out.write_all(&self.0)
            .map_err(Io::at("packing", "seed".as_ref()))?;
        Ok(())
    }
}

fn image(path: &Path, write: &WriteOptions, tars: Vec<Vec<u8>>) -> Result<(), Box<dyn Error>> {
    let layer = |tar: Vec<u8>| {
        let (name, size) = ("seed".to_owned(), tar.len() as u64);
        SourceLayer {
            name,
            created_by: b"seed".to_vec(),
            diff_id: None,
            size,
            compressed: false,
            tar: Box::new(Bytes(tar)),
        }
    };
    let image = SourceImage {
        layers: tars.into_iter().map(layer).collect(),
        ..SourceImage::default()
    };
    let sources = sources::SourceOptions {
        platform: Platform::host(),
        secret: None,
        temp_dir: std::env::temp_dir(),
        max_size: MAX_SIZE,
    };
    let options = BuildOptions {
        output: path.to_owned(),
        force: true,
        sources,
        write: write.clone(),
        base: None,
        is_clone: false,
        changes: Vec::new(),
    };
    build(vec![image], &options, &|_| ())?;
    Ok(())
}
