//! What this library is.

use super::types::yn_bytes;

const fn number(text: &str) -> u32 {
    let (bytes, mut n, mut i) = (text.as_bytes(), 0, 0);
    while i < bytes.len() {
        n = n * 10 + (bytes[i] - b'0') as u32;
        i += 1;
    }
    n
}

const VERSION: u32 = number(env!("CARGO_PKG_VERSION_MAJOR")) << 24
    | number(env!("CARGO_PKG_VERSION_MINOR")) << 16
    | number(env!("CARGO_PKG_VERSION_PATCH")) << 8;

const BUILD: &str =
    concat!("{\"version\":\"", env!("CARGO_PKG_VERSION"), "\",\"devices\":", env!("YINIAN_DEVICES"), "}");

/// The version of the loaded library: major << 24 | minor << 16 | patch << 8. Never blocks, also fine after fork.
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_version() -> u32 {
    VERSION
}

/// What this build is, as a JSON object: its version, and as `devices` the kinds of devices that it has code for, whether or
/// not this machine has them. Static, never freed. Also fine after fork.
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_build_info() -> yn_bytes {
    yn_bytes { data: BUILD.as_ptr(), len: BUILD.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_build_says_is_an_object() {
        let told: serde_json::Value = serde_json::from_str(BUILD).unwrap();
        assert_eq!((&told["version"], &told["devices"][0]), (&env!("CARGO_PKG_VERSION").into(), &"cpu".into()));
    }
}
