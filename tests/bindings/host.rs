//! What the C API itself answers, for the wrappers to agree with.

use std::mem::size_of;
use yinian::ffi::*;

fn bytes(s: &str) -> yn_bytes {
    yn_bytes { data: s.as_ptr(), len: s.len() }
}

/// The greedy continuation that the wrappers' tests ask for too.
pub(crate) fn text_of(model: &str) -> String {
    let config = serde_json::json!({"model": model, "log_level": "off"}).to_string();
    let mut engine = yn_engine { id: 0 };
    let mut text = Vec::new();
    // SAFETY: all pointers are to live values of the sizes that are given with them; records lie inside the buffer.
    unsafe {
        assert_eq!(yn_engine_create(bytes(&config), &mut engine, std::ptr::null_mut()), YN_OK);
        let mut request: yn_request = std::mem::zeroed();
        assert_eq!(yn_request_init(engine, &mut request, size_of::<yn_request>() as u32), YN_OK);
        request.prompt_text = bytes("Once upon a time");
        request.max_tokens = 48;
        request.temperature = 0.0;
        request.flags = YN_REQ_IGNORE_EOS;
        assert_eq!(yn_engine_submit(engine, &request, std::ptr::null_mut(), std::ptr::null_mut()), YN_OK);
        let (mut buffer, mut used, mut done) = (vec![0u64; 1024], 0, false);
        while !done {
            let start = buffer.as_mut_ptr();
            assert_eq!(yn_engine_poll(engine, start.cast(), buffer.len() * 8, 20_000, &mut used), YN_OK);
            let (start, mut at) = (start.cast::<u8>().cast_const(), 0);
            while at < used {
                let event = *start.add(at).cast::<yn_event>();
                if u32::from(event.kind) == YN_EV_OUTPUT {
                    let from = start.add(at + event.text_off as usize);
                    text.extend_from_slice(std::slice::from_raw_parts(from, event.text_len as usize));
                }
                done |= u32::from(event.kind) == YN_EV_DONE;
                at += event.size as usize;
            }
        }
        assert_eq!(yn_engine_free(engine), YN_OK);
    }
    String::from_utf8(text).unwrap()
}
