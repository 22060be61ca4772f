//! The one list of backends.

use crate::base::config::NumericMode;
use crate::base::planted::Planted;
use crate::base::{Error, ErrorKind, Result};
use crate::hal::{Device, cpu, cuda, planted};
use std::path::PathBuf;
use std::sync::Arc;

/// How a device is opened.
#[derive(Debug, Clone, Default)]
pub struct DeviceOptions {
    /// Compute threads of a host backend; `None` takes what the process may use.
    pub threads: Option<usize>,
    /// Instruction sets a host backend may use, strongest first found; `None` allows all that the machine has.
    pub cpu_features: Option<String>,
    /// Where vendor libraries are looked for before the loader's own path.
    pub library_dir: Option<PathBuf>,
    /// Where algorithms of products that were found by timing are kept; `None` times none.
    pub tuning_cache: Option<PathBuf>,
    /// How numbers are to be computed. A device that cannot says so in its caps.
    pub numeric_mode: NumericMode,
    /// Bytes of weights that will be loaded from files, where that is known: the device gets ready for it while it opens.
    pub load_bytes: usize,
    /// Set by tests only.
    #[doc(hidden)]
    pub planted: Option<Arc<Planted>>,
}

/// A device by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Auto,
    Cpu,
    /// With its number.
    Cuda(usize),
}

fn parse(name: &str) -> Result<Name> {
    match (name, name.split_once(':')) {
        ("auto", _) => Ok(Name::Auto),
        ("cpu", _) => Ok(Name::Cpu),
        ("cuda", _) => Ok(Name::Cuda(0)),
        (_, Some(("cuda", n))) if n.len() < 4 && n.bytes().all(|b| b.is_ascii_digit()) && !n.is_empty() => {
            n.parse().map(Name::Cuda).map_err(|_| Error::invalid(format!("device {name:?} has no number")))
        }
        (_, Some(("ascend", _))) | ("ascend", _) => {
            Err(Error::unsupported(format!("device {name:?} is not in this build; use \"cpu\", \"cuda\" or \"auto\"")))
        }
        _ => Err(Error::invalid(format!("device {name:?} is unknown; expected auto, cpu, cuda or cuda:N"))),
    }
}

/// Whether this build has a device of this name; the error says why not.
pub fn check(name: &str) -> Result<()> {
    match parse(name)? {
        Name::Cuda(_) => cuda::check_build(),
        Name::Auto | Name::Cpu => Ok(()),
    }
}

/// Opens `name`: `auto` takes the first GPU where there is one and this build can use it, else the host processor.
pub fn open(name: &str, options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    let device = match parse(name)? {
        Name::Cpu => cpu::open(options)?,
        Name::Cuda(ordinal) => cuda::open(ordinal, options)?,
        Name::Auto => match cuda::open(0, options) {
            // A GPU that was there is not to be replaced by a processor unasked.
            Err(e) if e.kind == ErrorKind::DeviceLost => return Err(e),
            Ok(device) => device,
            Err(_) => cpu::open(options)?,
        },
    };
    Ok(options.planted.as_ref().map_or(Arc::clone(&device), |planted| planted::wrap(Arc::clone(&device), planted)))
}

/// Opens a device for each of `ranks` ranks: GPUs one behind the other from `name` on (`auto` and `cuda` begin with the
/// first), or the host processor as often. `Invalid` when there are too few.
pub fn open_ranks(name: &str, ranks: usize, options: &DeviceOptions) -> Result<Vec<Arc<dyn Device>>> {
    let gpus = |first: usize, device: Option<Arc<dyn Device>>| {
        let found = cuda::count(options)?;
        if first + ranks > found {
            return Err(Error::invalid(format!(
                "config key \"tensor_parallel_size\" is {ranks} on device {name:?}, which takes GPUs {first} to {}; the \
                 driver shows {found} (CUDA_VISIBLE_DEVICES may hide some)",
                first + ranks - 1
            )));
        }
        let opened = usize::from(device.is_some());
        let rest = (first + opened..first + ranks).map(|ordinal| cuda::open(ordinal, options));
        device.into_iter().map(Ok).chain(rest).collect()
    };
    match parse(name)? {
        Name::Cuda(first) if ranks > 1 => gpus(first, None),
        Name::Auto if ranks > 1 => match cuda::open(0, options) {
            Ok(device) => gpus(0, Some(device)),
            Err(e) if e.kind == ErrorKind::DeviceLost => Err(e),
            Err(_) => (0..ranks).map(|_| open("cpu", options)).collect(),
        },
        _ => (0..ranks).map(|_| open(name, options)).collect(),
    }
}

/// Opens the host processor, which is always there.
pub fn open_host(options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    cpu::open(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_names_the_devices_that_can_be_asked_for() {
        let named: Vec<String> = serde_json::from_str(env!("YINIAN_DEVICES")).unwrap();
        for device in ["cpu", "cuda", "ascend"] {
            assert_eq!(named.iter().any(|n| n == device), check(device).is_ok(), "{device}");
        }
    }

    #[test]
    fn names_parse_and_others_are_refused() {
        assert_eq!(parse("cuda").unwrap(), Name::Cuda(0));
        assert_eq!(parse("cuda:12").unwrap(), Name::Cuda(12));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:9999", "ascend", "ascend:1", "CPU"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
