//! Log lines of one engine: its name in front, its `log_level` as the limit.

use crate::base::config::LogLevel;
use log::{Level, LevelFilter};
use std::fmt::Arguments;

/// Every line goes to the process's sink (see `yn_log_to_callback`), which has a limit of its own.
#[derive(Debug)]
pub(crate) struct Logger {
    limit: LevelFilter,
    name: String,
}

impl Logger {
    pub(crate) fn new(level: LogLevel, name: String) -> Self {
        let limit = match level {
            LogLevel::Off => LevelFilter::Off,
            LogLevel::Error => LevelFilter::Error,
            LogLevel::Warn => LevelFilter::Warn,
            LogLevel::Info => LevelFilter::Info,
            LogLevel::Debug => LevelFilter::Debug,
            LogLevel::Trace => LevelFilter::Trace,
        };
        Self { limit, name }
    }

    /// Not to be called with a lock held: a host's sink may call back into the engine.
    pub(crate) fn line(&self, level: Level, text: Arguments<'_>) {
        if level <= self.limit {
            log::log!(target: "yinian::engine", level, "{}: {text}", self.name);
        }
    }

    pub(crate) fn error(&self, text: Arguments<'_>) {
        self.line(Level::Error, text);
    }
    pub(crate) fn warn(&self, text: Arguments<'_>) {
        self.line(Level::Warn, text);
    }
    pub(crate) fn info(&self, text: Arguments<'_>) {
        self.line(Level::Info, text);
    }
    pub(crate) fn debug(&self, text: Arguments<'_>) {
        self.line(Level::Debug, text);
    }
}
