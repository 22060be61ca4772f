//! Streams an answer through the C API, as a C program would.
//!
//! `cargo run --release --example generate` asks the demo model for a story; `-- --model DIR "prompt"` takes another
//! model, `-- --chat` talks on the terminal.

use std::io::{BufRead, IsTerminal, Write};
use std::mem::size_of;
use std::path::Path;
use std::process::ExitCode;
use yinian::ffi::*;

const USAGE: &str = "usage: generate [--model DIR] [--max-tokens N] [--temperature T] [--raw] [--chat] [PROMPT]
  --model DIR      a Hugging Face model directory (default: the demo model)
  --max-tokens N   at most N tokens per answer (default: 400)
  --temperature T  0 is greedy (default: the model's)
  --raw            continue PROMPT as plain text instead of answering it as a chat message
  --chat           a conversation: one line a message, empty line or end of input ends it";
const DEFAULT_PROMPT: &str = "Tell me a story about a fox and a lantern.";

struct Options {
    model: String,
    prompt: Option<String>,
    max_tokens: u32,
    temperature: Option<f32>,
    raw: bool,
    chat: bool,
}

fn options() -> Result<Options, String> {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo_model");
    let local = "examples/demo_model";
    let model = if Path::new(local).is_dir() { local } else { demo };
    let mut o =
        Options { model: model.to_owned(), prompt: None, max_tokens: 400, temperature: None, raw: false, chat: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--model" => o.model = value()?,
            "--max-tokens" => o.max_tokens = value()?.parse().map_err(|e| format!("--max-tokens: {e}"))?,
            "--temperature" => o.temperature = Some(value()?.parse().map_err(|e| format!("--temperature: {e}"))?),
            "--raw" => o.raw = true,
            "--chat" => o.chat = true,
            "-h" | "--help" => return Err(USAGE.to_owned()),
            _ if arg.starts_with("--") || o.prompt.is_some() => return Err(format!("unexpected {arg:?}\n{USAGE}")),
            _ => o.prompt = Some(arg),
        }
    }
    Ok(o)
}

fn bytes(s: &str) -> yn_bytes {
    yn_bytes { data: s.as_ptr(), len: s.len() }
}

fn new_error() -> yn_error {
    yn_error { status: 0, flags: 0, message: [0; 504] }
}

/// Turns a status into a result with the library's own message.
fn check(status: yn_status, err: &yn_error) -> Result<(), String> {
    if status == YN_OK {
        return Ok(());
    }
    let message: Vec<u8> = err.message.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    Err(format!("error {status}: {}", String::from_utf8_lossy(&message)))
}

/// Poll buffer of the size and alignment the API asks for.
struct Records {
    buffer: Vec<u64>,
    used: usize,
}

impl Records {
    fn new() -> Self {
        Self { buffer: vec![0; 8192], used: 0 }
    }

    /// Waits for events; every record is handed to `each` with its text.
    fn poll(&mut self, engine: yn_engine, mut each: impl FnMut(&yn_event, &str)) -> Result<(), String> {
        let buffer = self.buffer.as_mut_ptr().cast();
        // SAFETY: the buffer is 8-byte aligned, as long as said, and `used` outlives the call.
        let status = unsafe { yn_engine_poll(engine, buffer, self.buffer.len() * 8, -1, &mut self.used) };
        check(status, &new_error())?;
        let mut at = 0;
        while at < self.used {
            // SAFETY: the library wrote whole records up to `used`; `at` is the start of one, 8-byte aligned.
            let event = unsafe { &*self.buffer.as_ptr().cast::<u8>().add(at).cast::<yn_event>() };
            let from = at + event.text_off as usize;
            // SAFETY: a record's text lies inside the record.
            let text = unsafe {
                std::slice::from_raw_parts(self.buffer.as_ptr().cast::<u8>().add(from), event.text_len as usize)
            };
            each(event, &String::from_utf8_lossy(text));
            at += event.size as usize;
        }
        Ok(())
    }
}

/// Creates the engine with a progress bar on a terminal.
fn open(model: &str, records: &mut Records) -> Result<yn_engine, String> {
    let config = serde_json::json!({"model": model, "async_load": true, "log_level": "warn"}).to_string();
    let (mut engine, mut err) = (yn_engine { id: 0 }, new_error());
    // SAFETY: all pointers are to live values; the config is borrowed for the call.
    check(unsafe { yn_engine_create(bytes(&config), &mut engine, &mut err) }, &err)?;
    let (mut ready, mut failure) = (false, None);
    while !ready && failure.is_none() {
        records.poll(engine, |event, text| {
            if event.kind != YN_EV_ENGINE as u16 {
                return;
            }
            match event.finish {
                YN_STATE_READY => ready = true,
                YN_STATE_FAILED => failure = Some(text.to_owned()),
                _ => bar(event.n_tokens),
            }
        })?;
    }
    bar(1000);
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    failure.map_or(Ok(engine), Err)
}

/// Draws a bar of `permille` on a terminal.
fn bar(permille: u32) {
    if std::io::stderr().is_terminal() {
        let full = permille.min(1000) as usize / 25;
        eprint!("\rloading [{}{}] {:3} %", "#".repeat(full), ".".repeat(40 - full), permille / 10);
    }
}

/// One answer, streamed to standard output; returns its text.
fn answer(engine: yn_engine, prompt: &str, o: &Options, records: &mut Records) -> Result<String, String> {
    // SAFETY: an all-zero yn_request is a valid value of every field; init fills it.
    let mut request: yn_request = unsafe { std::mem::zeroed() };
    // SAFETY: `request` is live and as large as said.
    check(unsafe { yn_request_init(engine, &mut request, size_of::<yn_request>() as u32) }, &new_error())?;
    request.output = YN_OUT_TEXT;
    request.max_tokens = o.max_tokens;
    request.temperature = o.temperature.unwrap_or(request.temperature);
    *(if o.raw { &mut request.prompt_text } else { &mut request.chat_json }) = bytes(prompt);
    let (mut id, mut err) = (0, new_error());
    // SAFETY: all pointers are to live values; the prompt is copied by the call.
    check(unsafe { yn_engine_submit(engine, &request, &mut id, &mut err) }, &err)?;
    let (mut text, mut done) = (String::new(), None);
    while done.is_none() {
        records.poll(engine, |event, delta| match u32::from(event.kind) {
            YN_EV_OUTPUT => {
                print!("{delta}");
                // A closed pipe ends the program at the next print.
                let _ = std::io::stdout().flush();
                text.push_str(delta);
            }
            YN_EV_DONE => done = Some(closing_line(event, delta)),
            _ => {}
        })?;
    }
    println!();
    match done {
        Some(Err(e)) => Err(e),
        Some(Ok(line)) => {
            eprintln!("{line}");
            Ok(text)
        }
        None => Err("the stream ended without a last record".to_owned()),
    }
}

fn closing_line(done: &yn_event, message: &str) -> Result<String, String> {
    if done.status != YN_OK {
        return Err(format!("error {}: {message}", done.status));
    }
    let first_ms = done.t_first_ns.saturating_sub(done.t_submit_ns) as f64 / 1e6;
    let rest = done.t_event_ns.saturating_sub(done.t_first_ns) as f64 / 1e9;
    let rate = f64::from(done.completion_tokens.saturating_sub(1)) / rest.max(1e-9);
    Ok(format!(
        "[{} tokens, {rate:.0} tokens/s, first token after {first_ms:.1} ms, {} of {} prompt tokens from the prefix cache]",
        done.completion_tokens, done.cached_tokens, done.prompt_tokens
    ))
}

fn chat_json(messages: &[(&str, String)]) -> String {
    let messages: Vec<_> =
        messages.iter().map(|(role, content)| serde_json::json!({"role": role, "content": content})).collect();
    serde_json::json!({"messages": messages}).to_string()
}

fn talk(engine: yn_engine, o: &Options, records: &mut Records) -> Result<(), String> {
    let mut messages: Vec<(&str, String)> = Vec::new();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        eprint!("> ");
        let line = match lines.next() {
            Some(line) => line.map_err(|e| e.to_string())?,
            None => return Ok(()),
        };
        if line.trim().is_empty() {
            return Ok(());
        }
        messages.push(("user", line));
        let text = answer(engine, &chat_json(&messages), o, records)?;
        messages.push(("assistant", text));
    }
}

fn run() -> Result<(), String> {
    let o = options()?;
    let mut records = Records::new();
    let engine = open(&o.model, &mut records)?;
    let result = if o.chat {
        talk(engine, &o, &mut records)
    } else {
        let prompt = o.prompt.clone().unwrap_or_else(|| DEFAULT_PROMPT.to_owned());
        let prompt = if o.raw { prompt } else { chat_json(&[("user", prompt)]) };
        answer(engine, &prompt, &o, &mut records).map(drop)
    };
    // SAFETY: plain handle by value.
    let freed = unsafe { yn_engine_free(engine) };
    result.and_then(|()| check(freed, &new_error()))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}
