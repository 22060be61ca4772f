//! The threads of one engine and the channels between them: started when the model is there, ended in the order that
//! loses nothing: intake, then the engine thread, then output.

use crate::base::{Error, ErrorKind, Result, threads};
use crate::engine::build::Parts;
use crate::engine::core::Core;
use crate::engine::intake::{self, Job};
use crate::engine::output::{self, OutputMsg};
use crate::engine::shared::{Command, Shared};
use crate::plan::FinishReason;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

#[derive(Debug, Default)]
struct Handles {
    loader: Option<JoinHandle<()>>,
    intake: Vec<JoinHandle<()>>,
    engine: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
}

/// Owner of an engine's threads. Jobs are taken from the first moment and wait until the model is loaded.
#[derive(Debug)]
pub(crate) struct Threads {
    /// `None` once closed.
    jobs: Mutex<Option<Sender<Job>>>,
    inbox: Receiver<Job>,
    handles: Mutex<Handles>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let failed = format!("the thread {name} does not start");
    threads::named(name).spawn(body).map_err(|e| Error::io(e.to_string()).within(failed))
}

impl Threads {
    /// `max_waiting` bounds the jobs, because a job is a waiting request.
    pub(crate) fn new(max_waiting: usize) -> Self {
        let (jobs, inbox) = bounded(max_waiting);
        Self { jobs: Mutex::new(Some(jobs)), inbox, handles: Mutex::default() }
    }

    pub(crate) fn spawn_loader(&self, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let handle = spawn("yn-loader".to_owned(), body)?;
        lock(&self.handles).loader = Some(handle);
        Ok(())
    }

    /// Hands a job on; when the engine is closed or full its seats answer the host.
    pub(crate) fn send(&self, job: Job) {
        // The lock is held over the send, so that nothing is sent after `refuse_jobs` or `close` has looked.
        let refused = match &*lock(&self.jobs) {
            Some(jobs) => jobs.try_send(job).err().map(crossbeam_channel::TrySendError::into_inner),
            None => Some(job),
        };
        if let Some(job) = refused {
            job.end(FinishReason::Cancelled, None);
        }
    }

    /// While the model loads: ends the waiting jobs that were cancelled or are late. Only the loader calls this.
    pub(crate) fn sweep(&self, now_ns: u64) {
        // The lock keeps new jobs out, so those that stay find their room again.
        let Some(jobs) = &*lock(&self.jobs) else { return };
        for job in (0..self.inbox.len()).map_while(|_| self.inbox.try_recv().ok()) {
            match job.live().over(now_ns) {
                Some(reason) => job.end(reason, None),
                // A job that found no room would end with its seats' own error.
                None => drop(jobs.try_send(job)),
            }
        }
    }

    /// Starts what serves requests.
    pub(crate) fn start(&self, parts: Parts, shared: &Arc<Shared>, watchdog_ms: u32) -> Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut handles = lock(&self.handles);
        let mut outputs = Vec::new();
        for i in 0..(cores / 8).clamp(1, 4) {
            // Bounded by what lives: at most one message a step and shard, one item a running sequence.
            let (sender, inbox) = unbounded::<OutputMsg>();
            let shared = Arc::clone(shared);
            handles.outputs.push(spawn(format!("yn-output-{i}"), move || output::run(&inbox, &shared))?);
            outputs.push(sender);
        }
        let core = Core::new(parts.sched, parts.exec, Arc::clone(shared), outputs.clone(), watchdog_ms);
        handles.engine = Some(spawn("yn-engine".to_owned(), move || core.run())?);
        let limits = Arc::new(parts.limits);
        for i in 0..(cores / 4).clamp(1, 4) {
            let (jobs, limits) = (self.inbox.clone(), Arc::clone(&limits));
            let (outputs, shared) = (outputs.clone(), Arc::clone(shared));
            handles
                .intake
                .push(spawn(format!("yn-intake-{i}"), move || intake::run(&jobs, &limits, &outputs, &shared))?);
        }
        Ok(())
    }

    /// After a failed load: ends what waited for it and whatever still comes.
    pub(crate) fn refuse_jobs(&self, error: &Error) {
        *lock(&self.jobs) = None;
        while let Ok(job) = self.inbox.try_recv() {
            match error.kind {
                // The engine was freed.
                ErrorKind::Shutdown => job.end(FinishReason::Cancelled, None),
                _ => job.end(FinishReason::Error, Some(error)),
            }
        }
    }

    /// Ends all threads. Requests must have been cancelled before.
    pub(crate) fn close(&self, shared: &Shared) {
        *lock(&self.jobs) = None;
        let loader = lock(&self.handles).loader.take();
        // The loader first: it may be starting the others.
        loader.into_iter().for_each(join_unless_current);
        let mut handles = std::mem::take(&mut *lock(&self.handles));
        handles.intake.drain(..).for_each(join_unless_current);
        shared.send(Command::Close);
        handles.engine.into_iter().for_each(join_unless_current);
        handles.outputs.drain(..).for_each(join_unless_current);
        // Left only when the model was never loaded.
        while let Ok(job) = self.inbox.try_recv() {
            job.end(FinishReason::Cancelled, None);
        }
    }
}

/// The last reference to an engine may be dropped on one of its own threads.
fn join_unless_current(handle: JoinHandle<()>) {
    if handle.thread().id() != std::thread::current().id() {
        // A thread that panicked has already reported why.
        let _ = handle.join();
    }
}
