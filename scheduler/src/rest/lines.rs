//! How inputs ended, as lines of JSON.

use bytes::{BufMut, BytesMut};
use capstan_common::input::{Format, Outcome, Payload};
use capstan_verb::call::{Line, error_json};
use serde_json::json;

/// The output that is to be written in a line; none where it is not JSON, or there is none.
pub fn shown(outcome: &Outcome) -> Option<&Payload> {
    match outcome {
        Outcome::Succeeded(payload) if payload.format == Format::Json => Some(payload),
        _ => None,
    }
}

/// Writes a line; `output` is the output's JSON, `cursor` whether the cursor is told.
pub fn write(line: &Line, output: &[u8], cursor: bool, out: &mut BytesMut) {
    let mut digits = itoa::Buffer::new();
    out.put_slice(b"{\"index\":");
    out.put_slice(digits.format(line.index).as_bytes());
    match &line.outcome {
        Outcome::Succeeded(payload) if payload.format != Format::Json => {
            let told = format!(",\"format\":\"{}\",\"bytes\":{}", payload.format.name(), payload.len());
            out.put_slice(told.as_bytes());
        }
        Outcome::Succeeded(_) => {
            out.put_slice(b",\"output\":");
            out.put_slice(output);
        }
        Outcome::Failed(failure) => {
            out.put_slice(b",\"error\":");
            out.put_slice(error_json(failure).to_string().as_bytes());
        }
        Outcome::Cancelled => {
            let error = json!({"code": "cancelled", "type": "Cancelled", "message": "the call was cancelled", "traceback": null});
            out.put_slice(b",\"error\":");
            out.put_slice(error.to_string().as_bytes());
        }
    }
    if cursor {
        out.put_slice(format!(",\"cursor\":\"{}\"", line.cursor).as_bytes());
    }
    out.put_slice(b"}\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use capstan_verb::cursor::Cursor;

    #[test]
    fn an_output_that_is_not_json_is_told_of_and_never_written_as_if_it_were() {
        let pickle = Payload { format: Format::Pickle, ..Payload::json(&b"\x80\x04}\n."[..]) };
        let line = Line { index: 3, outcome: Outcome::Succeeded(pickle), cursor: Cursor::Index(4) };
        assert_eq!(shown(&line.outcome), None);
        let mut out = BytesMut::new();
        write(&line, b"", true, &mut out);
        assert_eq!(&out[..], b"{\"index\":3,\"format\":\"pickle\",\"bytes\":5,\"cursor\":\"i4\"}\n");
    }
}
