//! Linker arguments of the shared library, and its CUDA kernels where a compiler is found.
//!
//! The compiler is `$NVCC`, or stands in `$CUDA_HOME/bin`, on the PATH, in /usr/local/cuda, or where
//! `kernels/fetch_compiler.sh` puts one. Nothing is downloaded here. Without one the library has no kernels and says so
//! when a CUDA device is asked for.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Ahead of time for the two generations that are supported, and PTX for what comes after them.
const FLAGS: [&str; 10] = [
    "-O3",
    "-std=c++17",
    "-fatbin",
    "--compress-mode=size",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",
    "-lineinfo",
    "-Xcompiler=-fPIC",
    "-diag-suppress=177",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libyinian.so.0.1");
        // Engine threads may still run when a host calls dlclose.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
    kernels();
}

fn kernels() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo:rerun-if-changed={}", root.join("target/cuda-compiler/complete").display());
    let sources = sources(&root.join("kernels"));
    // Beside the profiles, which share the images.
    let kept = out.ancestors().nth(4).expect("OUT_DIR is four folders below the target's").join("cuda-images");
    std::fs::create_dir_all(&kept).expect("the target folder can be written");
    let images = match compiler(&root) {
        Some(nvcc) => compile(&nvcc, &sources, &kept),
        None => {
            println!(
                "cargo:warning=no CUDA compiler was found, so the library has no CUDA kernels; see kernels/fetch_compiler.sh"
            );
            Vec::new()
        }
    };
    // What the library says of itself. The host's processor needs no images, and NPUs bring theirs.
    let devices = if images.is_empty() { r#"["cpu","ascend"]"# } else { r#"["cpu","cuda","ascend"]"# };
    println!("cargo:rustc-env=YINIAN_DEVICES={devices}");
    let mut table = String::from("pub(super) static IMAGES: &[(&str, &[u8])] = &[\n");
    for (name, path) in images {
        writeln!(table, "    ({name:?}, include_bytes!({path:?})),").expect("a string");
    }
    table.push_str("];\n");
    std::fs::write(out.join("cuda_images.rs"), table).expect("OUT_DIR can be written");
}

/// The .cu files, and the text of everything that they may include.
fn sources(dir: &Path) -> (Vec<PathBuf>, Vec<(PathBuf, Vec<u8>)>) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"))
        .collect();
    files.sort();
    let (sources, headers): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|p| p.extension().is_some_and(|e| e == "cu"));
    let read = |path: PathBuf| {
        let text = std::fs::read(&path).expect("a kernel header");
        // By its name alone, so that another checkout keeps the images of a copied target folder.
        (PathBuf::from(path.file_name().expect("a file")), text)
    };
    (sources, headers.into_iter().map(read).collect())
}

fn compiler(root: &Path) -> Option<PathBuf> {
    let mut candidates: Vec<PathBuf> = env::var_os("NVCC").map(PathBuf::from).into_iter().collect();
    candidates.extend(env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")));
    let path = env::var_os("PATH").unwrap_or_default();
    candidates.extend(env::split_paths(&path).map(|dir| dir.join("nvcc")));
    candidates.push(PathBuf::from("/usr/local/cuda/bin/nvcc"));
    candidates.push(root.join("target/cuda-compiler/nvidia/cu13/bin/nvcc"));
    candidates.into_iter().find(|path| path.is_file())
}

/// Those of `headers` that a source includes, or that one of them does.
fn included<'a>(source: &[u8], headers: &'a [(PathBuf, Vec<u8>)]) -> Vec<&'a (PathBuf, Vec<u8>)> {
    let mut found: Vec<&(PathBuf, Vec<u8>)> = Vec::new();
    let mut texts = vec![source];
    while let Some(text) = texts.pop() {
        let text = String::from_utf8_lossy(text).into_owned();
        for name in text.lines().filter_map(|line| line.trim().strip_prefix("#include \"")?.strip_suffix('"')) {
            let header = headers.iter().find(|header| header.0.as_os_str() == name);
            let header = header.unwrap_or_else(|| panic!("kernels/ has no {name}"));
            if !found.iter().any(|other| other.0 == header.0) {
                found.push(header);
                texts.push(&header.1);
            }
        }
    }
    found.sort();
    found
}

/// Images by file stem. Compiled ones are kept under the hash of all that went into them.
fn compile(
    nvcc: &Path,
    (sources, headers): &(Vec<PathBuf>, Vec<(PathBuf, Vec<u8>)>),
    kept: &Path,
) -> Vec<(String, PathBuf)> {
    let version = Command::new(nvcc).arg("--version").output().expect("the CUDA compiler starts").stdout;
    let mut running = Vec::new();
    let mut images = Vec::new();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    for source in sources {
        let stem = source.file_stem().expect("a file").to_string_lossy().into_owned();
        let mut hash = DefaultHasher::new();
        let text = std::fs::read(source).expect("a kernel");
        (&version, FLAGS, included(&text, headers), text).hash(&mut hash);
        let image = kept.join(format!("{stem}-{:016x}.fatbin", hash.finish()));
        images.push((stem, image.clone()));
        if image.is_file() {
            continue;
        }
        if running.len() >= jobs {
            finish(running.remove(0));
        }
        let part = image.with_extension(format!("part{}", std::process::id()));
        let child = Command::new(nvcc).args(FLAGS).arg("-o").arg(&part).arg(source).spawn();
        running.push((child.expect("the CUDA compiler starts"), part, image, source.clone()));
    }
    running.into_iter().for_each(finish);
    images
}

fn finish((mut child, part, image, source): (std::process::Child, PathBuf, PathBuf, PathBuf)) {
    let status = child.wait().expect("the CUDA compiler ends");
    assert!(status.success(), "{} does not compile", source.display());
    std::fs::rename(part, image).expect("OUT_DIR can be written");
}
