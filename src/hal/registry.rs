//! The one list of backends.

use crate::base::config::NumericMode;
use crate::base::planted::Planted;
use crate::base::{Error, ErrorKind, Result};
use crate::hal::{Device, ascend, cpu, cuda, planted};
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
    Ascend(usize),
}

fn parse(name: &str) -> Result<Name> {
    let (kind, number) = name.split_once(':').map_or((name, None), |(kind, number)| (kind, Some(number)));
    let number = match number {
        None => Some(0),
        Some(n) if (1..4).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()) => n.parse().ok(),
        Some(_) => None,
    };
    match (kind, number) {
        _ if name == "auto" => Ok(Name::Auto),
        _ if name == "cpu" => Ok(Name::Cpu),
        ("cuda", Some(n)) => Ok(Name::Cuda(n)),
        ("ascend", Some(n)) => Ok(Name::Ascend(n)),
        _ => Err(Error::invalid(format!(
            "device {name:?} is unknown; expected auto, cpu, cuda, cuda:N, ascend or ascend:N"
        ))),
    }
}

/// Whether this build has a device of this name; the error says why not.
pub fn check(name: &str) -> Result<()> {
    match parse(name)? {
        Name::Cuda(_) => cuda::check_build(),
        Name::Auto | Name::Cpu | Name::Ascend(_) => Ok(()),
    }
}

/// What [`open`] and [`open_ranks`] take for `auto`: the first accelerator that opens, opened, and the numbers of its kind.
fn first_accelerator(options: &DeviceOptions) -> Result<Option<(Kind, Arc<dyn Device>)>> {
    for kind in KINDS {
        match (kind.open)(0, options) {
            // One that was there is not to be replaced by a processor unasked.
            Err(e) if e.kind == ErrorKind::DeviceLost => return Err(e),
            Ok(device) => return Ok(Some((kind, device))),
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Accelerators of one kind.
#[derive(Clone, Copy)]
struct Kind {
    open: fn(usize, &DeviceOptions) -> Result<Arc<dyn Device>>,
    count: fn(&DeviceOptions) -> Result<usize>,
    /// For people: what they are, who shows them, and what may hide some.
    words: [&'static str; 3],
}

const CUDA: Kind = Kind { open: cuda::open, count: cuda::count, words: ["GPUs", "driver", "CUDA_VISIBLE_DEVICES"] };
const ASCEND: Kind =
    Kind { open: ascend::open, count: ascend::count, words: ["NPUs", "runtime", "ASCEND_RT_VISIBLE_DEVICES"] };
/// In the order in which `auto` tries them.
const KINDS: [Kind; 2] = [CUDA, ASCEND];

/// Opens `name`: `auto` takes the first GPU or NPU where there is one and this build can use it, else the host processor.
pub fn open(name: &str, options: &DeviceOptions) -> Result<Arc<dyn Device>> {
    let device = match parse(name)? {
        Name::Cpu => cpu::open(options)?,
        Name::Cuda(ordinal) => cuda::open(ordinal, options)?,
        Name::Ascend(ordinal) => ascend::open(ordinal, options)?,
        Name::Auto => match first_accelerator(options)? {
            Some((_, device)) => device,
            None => cpu::open(options)?,
        },
    };
    Ok(options.planted.as_ref().map_or(Arc::clone(&device), |planted| planted::wrap(Arc::clone(&device), planted)))
}

/// Opens a device for each of `ranks` ranks: GPUs or NPUs one behind the other from `name` on (`auto` and names without a number
/// begin with the first), or the host processor as often. `Invalid` when there are too few.
pub fn open_ranks(name: &str, ranks: usize, options: &DeviceOptions) -> Result<Vec<Arc<dyn Device>>> {
    let several = |kind: Kind, first: usize, device: Option<Arc<dyn Device>>| {
        let (found, [what, who, hides]) = ((kind.count)(options)?, kind.words);
        if first + ranks > found {
            return Err(Error::invalid(format!(
                "config key \"tensor_parallel_size\" is {ranks} on device {name:?}, which takes {what} {first} to {}; the {who} \
                 shows {found} ({hides} may hide some)",
                first + ranks - 1
            )));
        }
        let opened = usize::from(device.is_some());
        let rest = (first + opened..first + ranks).map(|ordinal| (kind.open)(ordinal, options));
        device.into_iter().map(Ok).chain(rest).collect()
    };
    match parse(name)? {
        Name::Cuda(first) if ranks > 1 => several(CUDA, first, None),
        Name::Ascend(first) if ranks > 1 => several(ASCEND, first, None),
        Name::Auto if ranks > 1 => match first_accelerator(options)? {
            Some((kind, device)) => several(kind, 0, Some(device)),
            None => (0..ranks).map(|_| open("cpu", options)).collect(),
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
        assert_eq!((parse("ascend").unwrap(), parse("ascend:7").unwrap()), (Name::Ascend(0), Name::Ascend(7)));
        for wrong in
            ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:9999", "ascend:", "ascend:x", "cpu:0", "auto:1", "CPU"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
