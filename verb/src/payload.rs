//! Clients' bytes on their way through verbs: inputs travel as they are behind the verb that brings them, outputs inside the answer,
//! or by reference where they lie in the blob store.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use capstan_common::{
    input::{Blob, Body, Failure, Format, Outcome, Payload},
    refusal::{Code, Refusal},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::value::RawValue;

/// An input as a client brings it. Its bytes are what its format says: whoever makes one has looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    format: Format,
    bytes: Bytes,
}

impl Input {
    /// One JSON value, without the space around it.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(bytes: &Bytes) -> Result<Self, serde_json::Error> {
        let value: &RawValue = serde_json::from_slice(bytes)?;
        Ok(Self { format: Format::Json, bytes: bytes.slice_ref(value.get().as_bytes()) })
    }

    /// What it is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What it holds.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What it holds.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The same with the bytes that came behind the verb.
    ///
    /// # Errors
    /// They are not what the format says.
    pub fn with(&self, bytes: &Bytes) -> Result<Self, Refusal> {
        match self.format {
            Format::Json => Self::json(bytes)
                .map_err(|error| Refusal::new(Code::Malformed, format!("the input is not JSON: {error}"))),
            // No door makes any yet.
            other => {
                let detail = format!("an input that is {} is not taken here", other.name());
                Err(Refusal::new(Code::Unsupported, detail))
            }
        }
    }
}

impl Serialize for Input {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.format.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self { format: Format::deserialize(d)?, bytes: Bytes::new() })
    }
}

/// How an input ended, as one scheduler tells another.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Told {
    /// JSON, as text: small ones alone are not in the blob store.
    Json(String),
    /// All else.
    Bytes(Format, String),
    /// In the blob store, which all schedulers read.
    Blob(Format, Blob),
    Failed(Failure),
    Cancelled,
}

/// Writes an outcome for another scheduler.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(outcome: &Outcome, s: S) -> Result<S::Ok, S::Error> {
    let told = match outcome {
        Outcome::Succeeded(Payload { format, body: Body::Inline(bytes) }) => match std::str::from_utf8(bytes) {
            Ok(text) if *format == Format::Json => Told::Json(text.into()),
            _ => Told::Bytes(*format, BASE64_STANDARD.encode(bytes)),
        },
        Outcome::Succeeded(Payload { format, body: Body::Blob(blob) }) => Told::Blob(*format, blob.clone()),
        Outcome::Failed(failure) => Told::Failed(failure.clone()),
        Outcome::Cancelled => Told::Cancelled,
    };
    told.serialize(s)
}

/// Reads what another scheduler has written.
///
/// # Errors
/// It is none of these.
pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Outcome, D::Error> {
    let succeeded = |format, body| Outcome::Succeeded(Payload { format, body });
    Ok(match Told::deserialize(d)? {
        Told::Json(text) => succeeded(Format::Json, Body::Inline(text.into())),
        Told::Bytes(format, text) => {
            let bytes = BASE64_STANDARD.decode(text).map_err(D::Error::custom)?;
            succeeded(format, Body::Inline(bytes.into()))
        }
        Told::Blob(format, blob) => succeeded(format, Body::Blob(blob)),
        Told::Failed(failure) => Outcome::Failed(failure),
        Told::Cancelled => Outcome::Cancelled,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use capstan_common::input::FailureKind;

    #[derive(Serialize, Deserialize)]
    struct Carried(#[serde(with = "super")] Outcome);

    #[test]
    fn outcomes_say_the_same_on_their_way_to_another_scheduler() {
        let inline = |format, bytes: &'static [u8]| Payload { format, body: Body::Inline(Bytes::from_static(bytes)) };
        let blob = Blob { name: "ca-1/out-0".into(), len: 1 << 40, crc32c: 7 };
        let failure = Failure {
            kind: FailureKind::Function,
            error_type: "ValueError".into(),
            message: "no".into(),
            traceback: "line 1".into(),
        };
        for outcome in [
            Outcome::Succeeded(inline(Format::Json, b"{\"a\": 1.00, \"b\": \"\\u00e4\"}")),
            Outcome::Succeeded(inline(Format::Pickle, b"\x80\x04\xff.")),
            Outcome::Succeeded(Payload { format: Format::Cbor, body: Body::Blob(blob) }),
            Outcome::Failed(failure),
            Outcome::Cancelled,
        ] {
            let written = serde_json::to_string(&Carried(outcome.clone())).unwrap();
            let Carried(again) = serde_json::from_str(&written).unwrap();
            assert_eq!(again, outcome, "{written}");
        }
    }

    #[test]
    fn an_input_is_what_its_format_says_or_none() {
        let read = |format: &str, bytes: &'static [u8]| {
            let input: Input = serde_json::from_str(format).unwrap();
            input.with(&Bytes::from_static(bytes)).map(|input| input.bytes().to_vec()).map_err(|refusal| refusal.code)
        };
        assert_eq!(read("\"json\"", b" {\"a\": 1.00} \n"), Ok(b"{\"a\": 1.00}".to_vec()));
        for bad in [&b"1\n{\"index\":9}"[..], b"", b"{", b"\xff"] {
            assert_eq!(read("\"json\"", bad), Err(Code::Malformed));
        }
        assert_eq!(read("\"pickle\"", b"\x80\x04."), Err(Code::Unsupported));
    }
}
