//! What this machine has for the library, and what of it would be used: for people who set a machine up.

use crate::base::Error;
use crate::hal::registry::{self, DeviceOptions};
use crate::hal::{MemoryInfo, ascend, cpu, cuda};

/// A vendor library and what the search for it came to.
#[derive(Debug, Clone)]
pub struct Library {
    /// For people ("CUDA driver").
    pub name: &'static str,
    /// What cannot be done without it.
    pub used_for: &'static str,
    /// Files and names that were tried, in order, up to the one that was found.
    pub searched: Vec<String>,
    pub found: Option<FoundLibrary>,
    /// Oldest version that serves, where there is such a limit.
    pub needed: Option<String>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// A library that was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLibrary {
    pub path: String,
    /// As it tells itself ("13.0").
    pub version: Option<String>,
}

/// One device beside the host processor.
#[derive(Debug, Clone)]
pub struct Accelerator {
    /// What a config's `device` calls it.
    pub name: String,
    /// Make and size, for people.
    pub description: String,
    pub memory: Option<MemoryInfo>,
    /// Why this build cannot use it.
    pub problem: Option<String>,
}

/// What a backend beside the host's finds.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The registry's name.
    pub name: &'static str,
    /// Kernel images of this build, with their bytes; `None` where builds have none.
    pub images: Option<Vec<(&'static str, usize)>>,
    pub libraries: Vec<Library>,
    pub accelerators: Vec<Accelerator>,
    /// Why its devices could not be listed.
    pub problem: Option<String>,
}

/// The host processor.
#[derive(Debug, Clone)]
pub struct Processor {
    /// Make, instruction set and threads as an engine would use them; the error of options it cannot take.
    pub description: Result<String, Error>,
    /// What this library looks for, of what the processor has.
    pub features: Vec<&'static str>,
    /// That the process may use.
    pub cores: usize,
    pub memory: Result<MemoryInfo, Error>,
}

/// See [`survey`].
#[derive(Debug, Clone)]
pub struct Survey {
    pub processor: Processor,
    pub backends: Vec<Backend>,
    /// Name and description of what `auto` takes.
    pub auto: Result<(&'static str, String), Error>,
    /// Why `auto` takes no accelerator, when it takes none.
    pub passed_over: Option<Error>,
}

/// Looks for everything that engines with such options could use. Opens each device for a moment, which takes some of its
/// memory; what is missing or broken is told in the result.
pub fn survey(options: &DeviceOptions) -> Survey {
    let auto = registry::open("auto", options).map(|device| (device.caps().name, device.caps().description.clone()));
    let host = auto.as_ref().is_ok_and(|(name, _)| *name == cpu::NAME);
    let passed_over = if host { registry::open("cuda", options).err() } else { None };
    Survey {
        processor: cpu::survey(options),
        backends: vec![cuda::survey(options), ascend::survey(options)],
        auto,
        passed_over,
    }
}
