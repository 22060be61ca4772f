//! Launches: a binary in the form of the kernel shim, with entries that do right, complain, or write where they may not.

use crate::api::P;
use crate::world::{F32, I32, World};
use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::process::Command;
use std::ptr::null_mut;
use std::sync::OnceLock;

const SOURCE: &str = r#"
#include <cstddef>
#include <cstdint>
#include <cstring>
typedef int (*Check)(const void *host, size_t bytes, int write);
extern "C" int yn_shim_has(const char *kernel) { return !strcmp(kernel, "scale") || !strcmp(kernel, "complain"); }
extern "C" const char *yn_shim_launch(const char *kernel, void **args, const size_t *sizes, int n, uint32_t blocks, Check check) {
    if (!strcmp(kernel, "complain")) return "a wait is missing";
    if (n != 4 || sizes[0] != 8 || sizes[1] != 8 || sizes[2] != 4 || sizes[3] != 4 || blocks != 3) return "other arguments";
    float *x = *(float **)args[0], by = *(float *)args[3];
    uint32_t count = *(uint32_t *)args[2];
    if (*(void **)args[1]) return "the second argument is null";
    if (!check(x, count * 4, 1)) return "x is not so long";
    for (uint32_t i = 0; i < count; i++) x[i] *= by;
    return nullptr;
}
"#;

/// The test binary, built once.
fn binary() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> PathBuf {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/ascend/launch");
    std::fs::create_dir_all(&dir).unwrap();
    let (source, out) = (dir.join("scale.cpp"), dir.join("scale.o"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("c++").args(["-shared", "-fPIC", "-o"]).arg(&out).arg(&source).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    out
}

/// An argument of a launch, as many bytes as it has.
fn append<V>(w: &World, args: P, value: &V) {
    let mut param = null_mut();
    assert_eq!(w.d.aclrtKernelArgsAppend(args, (&raw const *value).cast(), size_of::<V>(), &mut param), 0);
}

fn launch(w: &World, function: P, x: P, count: u32) -> i32 {
    let mut args = null_mut();
    assert_eq!(w.d.aclrtKernelArgsInit(function, &mut args), 0);
    append(w, args, &x);
    append(w, args, &null_mut::<u8>());
    append(w, args, &count);
    append(w, args, &2.5f32);
    assert_eq!(w.d.aclrtKernelArgsFinalize(args), 0);
    w.d.aclrtLaunchKernelWithConfig(function, 3, w.stream, null_mut(), args, null_mut())
}

/// The test binary as the double loads it, and a function of it.
fn open(w: &World, name: &CStr) -> (P, P) {
    let path = CString::new(binary().to_str().unwrap()).unwrap();
    let (mut binary, mut function) = (null_mut(), null_mut());
    assert_eq!(w.d.aclrtBinaryLoadFromFile(path.as_ptr(), null_mut(), &mut binary), 0);
    assert_eq!(w.d.aclrtBinaryGetFunction(binary, c"nobody".as_ptr(), &mut function), 107_000);
    assert_eq!(w.d.aclrtBinaryGetFunction(binary, name.as_ptr(), &mut function), 0);
    (binary, function)
}

#[test]
fn launches() {
    let w = World::lazy();
    let (binary, function) = open(&w, c"scale");
    let x = w.tensor(&[100], F32, &[2.0; 100]);
    assert_eq!(launch(&w, function, x.at, 100), 0);
    assert_eq!(w.read(x), [5.0; 100]);
    assert_eq!(w.d.aclrtBinaryUnLoad(binary), 0);
    assert_eq!((w.end(), w.d.faults()), (String::new(), String::new()));
}

/// What goes wrong with a binary, a function of it and 400 bytes, and what is answered.
type Mistake = fn(&World, P, P, P) -> i32;

/// Each mistake, the kernel it is made with, the answer that catches it and the kind of the fault.
const MISTAKES: [(&str, &CStr, Mistake, i32, &str); 7] = [
    ("more than there is", c"scale", |w, _, f, x| launch(w, f, x, 101).max(w.sync()), 507_015, "kernel"),
    ("a kernel that complains", c"complain", |w, _, f, x| launch(w, f, x, 1).max(w.sync()), 507_015, "kernel"),
    (
        "an address of the host",
        c"scale",
        |w, _, f, _| launch(w, f, (&raw const *w).cast_mut().cast(), 1),
        107_000,
        "not-device",
    ),
    (
        "freed before it ran",
        c"scale",
        |w, _, f, x| launch(w, f, x, 1).max(w.d.aclrtFree(x)).max(w.sync()),
        507_015,
        "use-after-free",
    ),
    (
        "unloaded before it ran",
        c"scale",
        |w, b, f, x| launch(w, f, x, 1).max(w.d.aclrtBinaryUnLoad(b)),
        107_000,
        "binary-pending",
    ),
    (
        "a function of an unloaded binary",
        c"scale",
        |w, b, f, _| w.d.aclrtBinaryUnLoad(b).max(w.d.aclrtKernelArgsInit(f, &mut null_mut())),
        107_000,
        "function",
    ),
    (
        "arguments that are not final",
        c"scale",
        |w, _, f, _| {
            let mut args = null_mut();
            w.d.aclrtKernelArgsInit(f, &mut args);
            w.d.aclrtLaunchKernelWithConfig(f, 3, w.stream, null_mut(), args, null_mut())
        },
        107_000,
        "kernel-args",
    ),
];

#[test]
fn mistakes_of_launches() {
    for (what, name, mistake, code, kind) in MISTAKES {
        let w = World::lazy();
        let (binary, function) = open(&w, name);
        let x = w.tensor(&[100], I32, &[2.0; 100]);
        assert_eq!(mistake(&w, binary, function, x.at), code, "{what}");
        let faults = w.d.faults();
        assert!(faults.starts_with(&format!("{kind}: ")) && faults.lines().count() == 1, "{what}: {faults}");
    }
}

#[test]
fn paths_are_absolute() {
    let w = World::lazy();
    let mut binary = null_mut();
    assert_eq!(w.d.aclrtBinaryLoadFromFile(c"target/scale.o".as_ptr(), null_mut(), &mut binary), 100_000);
    assert!(w.d.faults().starts_with("kernel-path: "));
    assert_eq!(w.d.aclrtBinaryLoadFromFile(c"/nowhere/scale.o".as_ptr(), null_mut(), &mut binary), 107_000);
    assert!(crate::api::text(w.d.aclGetRecentErrMsg()).contains("/nowhere/scale.o"));
}
