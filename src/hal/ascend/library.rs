//! Finding CANN's libraries. One folder is settled on by its `libascendcl.so`; the others are expected beside it.

use super::abi::Abi;
use crate::base::{Error, ErrorKind, Result};
use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};

/// AscendCL; the second name is what some versions ship alone.
pub(super) const ACL: [&str; 2] = ["libascendcl.so", "libacl_rt.so"];
const NNOPBASE: &str = "libnnopbase.so";
const OPAPI: &str = "libopapi.so";
/// Newer versions split the operators into several.
const OPAPI_PARTS: &str = "libopapi_";
const HCCL: &str = "libhccl.so";

/// Variables with which the toolkit's own scripts say where it is.
const HOMES: [&str; 2] = ["ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"];
/// Where installers put it.
const ROOTS: [&str; 3] =
    ["/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann", "/usr/local/Ascend/latest"];

/// What a search tried, in order, and the first word of the loader on something that exists.
#[derive(Debug, Clone, Default)]
pub(super) struct Searched {
    pub(super) tried: Vec<String>,
    pub(super) broken: Option<String>,
}

/// The opened libraries, for good: their threads may outlive everything.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) abi: Abi,
    /// AscendCL's, as it was opened.
    pub(super) path: String,
}

#[derive(Debug, Clone, Copy)]
struct Opened(*mut c_void);

/// Folders in which libraries may stand, before the loader's own path.
fn folders(library_dir: Option<&Path>, variables: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let own = format!("{}-linux", std::env::consts::ARCH);
    let below = |root: PathBuf| [root.join("lib64"), root.join(&own).join("lib64")];
    let roots = HOMES.iter().filter_map(|name| variables(name)).chain(ROOTS.iter().map(PathBuf::from));
    let mut folders: Vec<PathBuf> = library_dir.map(Path::to_owned).into_iter().chain(roots.flat_map(below)).collect();
    let mut seen = Vec::new();
    folders.retain(|folder| {
        !seen.contains(folder) && {
            seen.push(folder.clone());
            true
        }
    });
    folders
}

fn open(path: &Path) -> std::result::Result<Opened, String> {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: a NUL-terminated name; loading a vendor library runs its initialisers, as every user of it does.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !handle.is_null() {
        return Ok(Opened(handle));
    }
    // SAFETY: no arguments; the text is this thread's until its next call of the loader.
    let why = unsafe { libc::dlerror() };
    if why.is_null() {
        return Err("unknown error".to_owned());
    }
    // SAFETY: not null, so NUL-terminated.
    Err(unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned())
}

impl Searched {
    fn open(&mut self, path: &Path) -> Option<Opened> {
        self.tried.push(path.display().to_string());
        match open(path) {
            Ok(opened) => Some(opened),
            Err(why) => {
                if path.is_file() {
                    self.broken.get_or_insert(why);
                }
                None
            }
        }
    }

    fn failed(&self, what: &str) -> Error {
        let broken = self.broken.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
        Error::new(
            ErrorKind::Device,
            format!(
                "no {what}: searched {}{broken}; install CANN and its driver and run its set_env.sh, or name the folder of its \
                 libraries in \"device_library_dir\"",
                self.tried.join(", ")
            ),
        )
    }
}

/// Opens AscendCL and says where: the folder, none where the loader's own path led there.
fn runtime(library_dir: Option<&Path>, searched: &mut Searched) -> Option<(Opened, Option<PathBuf>)> {
    let variables = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folders = folders(library_dir, variables).into_iter().map(Some).chain([None]);
    for folder in folders {
        for name in ACL {
            let path = folder.as_ref().map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
            if let Some(opened) = searched.open(&path) {
                return Some((opened, folder));
            }
        }
    }
    None
}

/// The operator libraries that come in parts, by name.
fn parts(folder: Option<&Path>) -> Vec<PathBuf> {
    let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten();
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(OPAPI_PARTS) && name.ends_with(".so")
    });
    found.sort();
    found
}

/// What was tried to find AscendCL, and where it is. Stays loaded.
pub(super) fn look(library_dir: Option<&Path>) -> (Searched, bool) {
    let mut searched = Searched::default();
    let found = runtime(library_dir, &mut searched).is_some();
    (searched, found)
}

impl Library {
    /// Opens everything and asks for all entry points. Errors say what was searched, or what is missing.
    pub(super) fn load(library_dir: Option<&Path>) -> Result<Self> {
        let mut searched = Searched::default();
        let Some((acl, folder)) = runtime(library_dir, &mut searched) else {
            return Err(searched.failed("Ascend runtime (AscendCL)"));
        };
        let path = searched.tried.last().cloned().unwrap_or_default();
        let beside = |name: &str, searched: &mut Searched| {
            let places = folder.iter().map(|folder| folder.join(name)).chain([PathBuf::from(name)]);
            places.into_iter().find_map(|place| searched.open(&place))
        };
        let mut opened = vec![acl];
        let mut searched = Searched::default();
        let Some(base) = beside(NNOPBASE, &mut searched) else {
            return Err(searched.failed("base of Ascend's operators"));
        };
        opened.push(base);
        let mut searched = Searched::default();
        opened.extend(parts(folder.as_deref()).iter().filter_map(|part| searched.open(part)));
        let whole = beside(OPAPI, &mut searched);
        if whole.is_none() && opened.len() == 2 {
            return Err(searched.failed("library of Ascend's operators"));
        }
        opened.extend(whole);
        // Only several ranks need it.
        opened.extend(beside(HCCL, &mut Searched::default()));
        let find = |name: &CStr| {
            // SAFETY: live handles and a NUL-terminated name.
            let found = opened.iter().map(|Opened(library)| unsafe { libc::dlsym(*library, name.as_ptr()) });
            found.into_iter().find(|address| !address.is_null()).unwrap_or(std::ptr::null_mut())
        };
        let abi = Abi::load(&find).map_err(|name| {
            let text = format!(
                "the Ascend libraries beside {path} are too old or incomplete: they have no {name}; this build needs CANN 8.3 or newer"
            );
            Error::new(ErrorKind::Device, text)
        })?;
        log::debug!("{path}: all entry points but {:?}", abi.absent());
        Ok(Self { abi, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_those_of_the_config_then_of_the_toolkit_then_the_known_ones() {
        let home = |name: &str| (name == "ASCEND_HOME_PATH").then(|| PathBuf::from("/opt/cann"));
        let found = folders(Some(Path::new("/mine")), home);
        assert_eq!(found[..2], [PathBuf::from("/mine"), PathBuf::from("/opt/cann/lib64")]);
        let arch = format!("/opt/cann/{}-linux/lib64", std::env::consts::ARCH);
        assert_eq!(found[2], PathBuf::from(arch));
        assert!(found.contains(&PathBuf::from("/usr/local/Ascend/ascend-toolkit/latest/lib64")), "{found:?}");
        // The toolkit's variable often names the known place.
        let twice = folders(None, |_| Some(PathBuf::from(ROOTS[0])));
        assert_eq!(twice, folders(None, |_| None));
    }

    #[test]
    fn what_is_missing_says_what_was_searched() {
        let dir = tempfile::tempdir().unwrap();
        let e = match Library::load(Some(dir.path())) {
            // A machine with NPUs may well have it.
            Ok(library) => return println!("found: {library:?}"),
            Err(e) => e,
        };
        let name = dir.path().display().to_string();
        for part in [&name, "libascendcl.so", "libacl_rt.so", "/usr/local/Ascend", "device_library_dir", "set_env.sh"] {
            assert!(e.message.contains(part) && e.kind == ErrorKind::Device, "no {part} in {e}");
        }
        std::fs::write(dir.path().join("libascendcl.so"), "no library").unwrap();
        let e = Library::load(Some(dir.path())).unwrap_err();
        assert!(e.message.contains("libascendcl.so: "), "the loader's words are missing: {e}");
    }
}
