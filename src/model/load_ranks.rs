//! Loads the shares of all ranks at the same time.

use crate::base::error::panic_text;
use crate::base::{Error, Result, threads};
use crate::hal::Device;
use crate::model::config::ModelInfo;
use crate::model::load::{LoadOptions, LoadProgress, Model, load_shard};
use crate::model::shard::Shard;
use crossbeam_channel::unbounded;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// One rank's share of a model for each of `devices` (`how` names any of them), for sequences of at most `max_len` tokens. `progress` hears on the
/// calling thread how far all ranks are, from 0 to 1; its error ends the loading and is returned, as is that of the rank
/// which fails first.
pub fn load_ranks(
    info: &ModelInfo,
    dir: &Path,
    (how, max_len): (LoadOptions, usize),
    devices: &[Arc<dyn Device>],
    progress: &mut dyn FnMut(f32) -> Result<()>,
) -> Result<Vec<Model>> {
    let ranks = devices.len();
    let load = &|rank: usize, report: &mut dyn FnMut(f32) -> Result<()>| {
        let mut report = |p: LoadProgress| report(p.bytes_done as f32 / p.bytes_total.max(1) as f32);
        let how = LoadOptions { shard: Shard { rank, ranks }, ..how };
        load_shard(info, dir, how, devices[rank].as_ref(), (max_len, &mut report))
    };
    if ranks == 1 {
        return Ok(vec![load(0, progress)?]);
    }
    let stopped = &OnceLock::new();
    let stop = move |e: Error| stopped.get_or_init(|| e).clone();
    std::thread::scope(|scope| {
        let (sender, reports) = unbounded();
        let start = |rank: usize| {
            let sender = sender.clone();
            let work = move || {
                let mut report = |part: f32| {
                    // He listens until all have ended.
                    let _ = sender.send((rank, part));
                    stopped.get().map_or(Ok(()), |e: &Error| Err(e.clone()))
                };
                load(rank, &mut report).map_err(|e| if stopped.get() == Some(&e) { e } else { stop(named(rank, e)) })
            };
            let thread = threads::named(format!("yn-loader-{rank}")).spawn_scoped(scope, work);
            thread.map_err(|e| stop(Error::io(format!("the loading thread of rank {rank} does not start: {e}"))))
        };
        let threads: Vec<_> = (0..ranks).map(start).collect();
        drop(sender);
        let mut parts = vec![0.0; ranks];
        for (rank, part) in reports {
            parts[rank] = part;
            if stopped.get().is_none() {
                let _ = progress(parts.iter().sum::<f32>() / ranks as f32).map_err(stop);
            }
        }
        let panicked = |payload: Box<dyn std::any::Any + Send>| {
            Err(stop(Error::internal(format!("loading panicked: {}", panic_text(&*payload)))))
        };
        let loaded: Vec<_> = threads.into_iter().map(|t| t?.join().unwrap_or_else(panicked)).collect();
        stopped.get().cloned().map_or_else(|| loaded.into_iter().collect(), Err)
    })
}

fn named(rank: usize, e: Error) -> Error {
    e.within(format!("rank {rank}"))
}
