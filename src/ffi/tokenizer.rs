//! Tokenizers and chat templates: CPU only, no engine needed.

use super::args::{MAX_BYTES, buf, json, out, slice, text};
use super::engine::ENGINES;
use super::guard::{call, deep_call, own_process};
use super::handle::Table;
use super::types::*;
use crate::base::{Error, ErrorKind, Result, Token};
use crate::text::{ShowSpecial, SpecialTokens, TextModel};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

/// What Linux takes.
const MAX_PATH_BYTES: usize = 4096;

static TOKENIZERS: Table<TextModel> = Table::new(3, "tokenizer");

fn known_flags(flags: u32, known: u32) -> Result<()> {
    if flags & !known == 0 {
        return Ok(());
    }
    Err(Error::unsupported(format!("flags is {flags:#x}; this build knows only {known:#x}")))
}

fn open(path: &Path) -> Result<TextModel> {
    if path.is_dir() {
        return TextModel::open(path, None, None);
    }
    TextModel::open(path.parent().unwrap_or(Path::new(".")), Some(path), None)
}

/// Opens the tokenizer and chat template of a model directory, or a tokenizer.json. Reads files, needs no engine. Free it with
/// yn_tokenizer_free. Errors: INVALID, NOT_FOUND, IO, NO_MEMORY.
///
/// # Safety
/// `path` is readable, `out_tokenizer` writable, `err` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_tokenizer_open(
    path: yn_bytes,
    out_tokenizer: *mut yn_tokenizer,
    err: *mut yn_error,
) -> yn_status {
    let body = || {
        // SAFETY: as documented.
        let (path, to) = unsafe { (text("path", path, MAX_PATH_BYTES)?, out("out_tokenizer", out_tokenizer)?) };
        own_process();
        to.id = TOKENIZERS.insert(Arc::new(open(Path::new(path))?))?;
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { deep_call(err, body) }
}

/// The tokenizer of an engine's model; it outlives the engine. Free it with yn_tokenizer_free. Errors: BAD_HANDLE, INVALID,
/// BUSY (the model still loads).
///
/// # Safety
/// `out_tokenizer` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_engine_tokenizer(engine: yn_engine, out_tokenizer: *mut yn_tokenizer) -> yn_status {
    let body = || {
        let engine = ENGINES.get(engine.id)?;
        // SAFETY: as documented.
        let to = unsafe { out("out_tokenizer", out_tokenizer) }?;
        to.id = TOKENIZERS.insert(engine.engine.text()?)?;
        Ok(())
    };
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), body) }
}

/// Retires a tokenizer's handle; calls that are inside finish. Errors: BAD_HANDLE.
///
/// # Safety
/// Always safe to call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_tokenizer_free(tokenizer: yn_tokenizer) -> yn_status {
    // SAFETY: no error is wanted.
    unsafe { call(null_mut(), || TOKENIZERS.remove(tokenizer.id, |_| ()).map(drop)) }
}

/// Text to token ids. *n_out is the room at `out_tokens` on the way in and the number of tokens on the way out; with TOO_SMALL
/// nothing else is written. `flags`: YN_TOKENIZE_*. Errors: BAD_HANDLE, INVALID, UNSUPPORTED, TOO_SMALL.
///
/// # Safety
/// `text` is readable, `n_out` writable, `out_tokens` has room for *n_out ids, `err` is null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_tokenize(
    tokenizer: yn_tokenizer,
    input: yn_bytes,
    flags: u32,
    out_tokens: *mut u32,
    n_out: *mut usize,
    err: *mut yn_error,
) -> yn_status {
    let body = || {
        let model = TOKENIZERS.get(tokenizer.id)?;
        known_flags(flags, YN_TOKENIZE_NO_SPECIAL)?;
        // SAFETY: as documented.
        let (input, n) = unsafe { (text("input", input, MAX_BYTES)?, out("n_out", n_out)?) };
        let special = if flags & YN_TOKENIZE_NO_SPECIAL != 0 { SpecialTokens::Omit } else { SpecialTokens::Add };
        let tokens = model.tokenizer.encode(input, special)?;
        let room = std::mem::replace(n, tokens.len());
        if tokens.len() > room {
            let (have, need) = (room, tokens.len());
            return Err(Error::new(ErrorKind::TooSmall, format!("{need} tokens do not fit the {have} of out_tokens")));
        }
        if !tokens.is_empty() {
            // SAFETY: as documented.
            unsafe { out("out_tokens", out_tokens)? };
            // SAFETY: not null and aligned, with room for the tokens.
            unsafe { std::ptr::copy_nonoverlapping(tokens.as_ptr(), out_tokens, tokens.len()) };
        }
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { call(err, body) }
}

/// Token ids to text. `flags`: YN_DETOKENIZE_*. Free the result with yn_buf_free. Errors: BAD_HANDLE, INVALID, UNSUPPORTED.
///
/// # Safety
/// `tokens` points to `n` readable ids; `out_text` is writable, `err` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_detokenize(
    tokenizer: yn_tokenizer,
    tokens: *const u32,
    n: usize,
    flags: u32,
    out_text: *mut yn_buf,
    err: *mut yn_error,
) -> yn_status {
    let body = || {
        let model = TOKENIZERS.get(tokenizer.id)?;
        known_flags(flags, YN_DETOKENIZE_SHOW_SPECIAL)?;
        // SAFETY: as documented.
        let (tokens, to): (&[Token], _) = unsafe { (slice("tokens", tokens, n)?, out("out_text", out_text)?) };
        let show = if flags & YN_DETOKENIZE_SHOW_SPECIAL != 0 { ShowSpecial::Show } else { ShowSpecial::Hide };
        *to = buf(model.tokenizer.decode(tokens, show)?.into_bytes());
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { call(err, body) }
}

/// Renders {"messages": [...], ...} with the chat template to the text that would be tokenized. Free the result with
/// yn_buf_free. Errors: BAD_HANDLE, INVALID, UNSUPPORTED (the model has no template), NO_MEMORY.
///
/// # Safety
/// `chat_json` is readable; `out_text` is writable, `err` null or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn yn_chat_render(
    tokenizer: yn_tokenizer,
    chat_json: yn_bytes,
    out_text: *mut yn_buf,
    err: *mut yn_error,
) -> yn_status {
    let body = || {
        let model = TOKENIZERS.get(tokenizer.id)?;
        // SAFETY: as documented.
        let (chat, to) = unsafe { (json("chat_json", chat_json, MAX_BYTES)?, out("out_text", out_text)?) };
        *to = buf(model.render(&chat)?.into_bytes());
        Ok(())
    };
    // SAFETY: as documented.
    unsafe { deep_call(err, body) }
}
