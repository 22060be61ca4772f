//! What there is of CANN and of NPUs.

use super::context::{self, Context};
use super::library::{self, ACL};
use super::{NAME, describe, open_device};
use crate::base::Error;
use crate::hal::MemoryInfo;
use crate::hal::registry::DeviceOptions;
use crate::hal::survey::{Accelerator, Backend, FoundLibrary, Library};

/// Looks for everything; opens each NPU for a moment.
pub(in crate::hal) fn survey(options: &DeviceOptions) -> Backend {
    let dir = options.library_dir.as_deref();
    let (searched, there) = library::look(dir);
    let started = context::start(dir);
    let version = started.as_ref().ok().and_then(|library| context::version(&library.abi));
    let path = searched.tried.last().cloned().unwrap_or_else(|| ACL[0].to_owned());
    let libraries = vec![Library {
        name: "CANN",
        used_for: "any Ascend NPU",
        found: there.then_some(FoundLibrary { path, version }),
        searched: searched.tried,
        needed: Some("CANN 8.3".to_owned()),
        problem: started.as_ref().err().map(|e| e.message.clone()),
    }];
    let count = started.and_then(|library| context::count(&library.abi));
    let accelerators = (0..*count.as_ref().unwrap_or(&0)).map(|ordinal| accelerator(ordinal, options)).collect();
    Backend { name: NAME, images: None, libraries, accelerators, problem: count.err().map(|e| e.message) }
}

fn accelerator(ordinal: usize, options: &DeviceOptions) -> Accelerator {
    let facts = Context::open(ordinal, options.library_dir.as_deref()).and_then(|context| {
        let (free_bytes, total_bytes) = context.memory()?;
        let problem = open_device(ordinal, options).err().map(|e| e.message);
        Ok((describe(&context), Some(MemoryInfo { total_bytes, free_bytes }), problem))
    });
    let unknown = |e: Error| (String::new(), None, Some(e.message));
    let (description, memory, problem) = facts.unwrap_or_else(unknown);
    Accelerator { name: format!("{NAME}:{ordinal}"), description, memory, problem }
}
