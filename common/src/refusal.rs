//! Answers that say no: a stable code, a sentence, and where it applies the fields that are wrong.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $http:literal, $title:literal;)*) => {
        /// Why something was refused. The one table that maps codes to HTTP status.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum Code { $($(#[$doc])* #[serde(rename = $text)] $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];
            /// The stable text of the contract.
            pub fn text(self) -> &'static str { match self { $(Code::$name => $text,)* } }
            /// The HTTP status it travels with.
            pub fn http(self) -> u16 { match self { $(Code::$name => $http,)* } }
            /// A short title in words.
            pub fn title(self) -> &'static str { match self { $(Code::$name => $title,)* } }
        }
    };
}

codes! {
    /// The body is not JSON.
    Malformed = "malformed", 400, "The request is not well formed";
    /// No or a wrong token.
    Unauthenticated = "unauthenticated", 401, "Authentication is required";
    /// The caller may not do this.
    Forbidden = "forbidden", 403, "Not allowed";
    /// No such function, call, container, worker or path.
    NotFound = "not_found", 404, "Not found";
    /// The path exists with other methods.
    MethodNotAllowed = "method_not_allowed", 405, "Method not allowed";
    /// The same key was used with another body.
    Conflict = "conflict", 409, "Conflict";
    /// The new revision does not start; the one before goes on.
    DeployFailed = "deploy_failed", 409, "The deployment failed";
    /// The call was cancelled.
    Cancelled = "cancelled", 409, "The call was cancelled";
    /// It was there and its retention has passed.
    Expired = "expired", 410, "Expired";
    /// The revision is not the expected one.
    PreconditionFailed = "precondition_failed", 412, "Precondition failed";
    /// One input or body is too large.
    PayloadTooLarge = "payload_too_large", 413, "Payload too large";
    /// The body is written in a way that is not read here.
    UnsupportedMedia = "unsupported_media_type", 415, "Unsupported media type";
    /// A field is unknown, of a wrong type, or out of range.
    Invalid = "invalid", 422, "Invalid request";
    /// The function's user cannot reach what the spec names.
    Unreachable = "unreachable", 422, "Out of the function's reach";
    /// Well formed, but nothing here can do it.
    Unsupported = "unsupported", 422, "Not supported";
    /// A limit was reached.
    ResourceExhausted = "resource_exhausted", 429, "Resource exhausted";
    /// Our own fault.
    Internal = "internal", 500, "Internal error";
    /// The function's own error.
    FunctionFailed = "function_failed", 502, "The function failed";
    /// Not able to serve now.
    Unavailable = "unavailable", 503, "Unavailable";
    /// The attempt ran past the function's time-out.
    FunctionTimeout = "function_timeout", 504, "The function timed out";
    /// The store's disk is full.
    StoreFull = "store_full", 507, "The store is full";
}

/// One wrong field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FieldError {
    /// JSON pointer of the field.
    pub pointer: String,
    /// What is wrong, with the limit and the value.
    pub detail: String,
}

/// An answer that says no.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{detail}")]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// One sentence: what, the limit, the value, and what to do next.
    pub detail: String,
    /// Wrong fields, where fields are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// When trying again may help, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
}

impl Refusal {
    /// A refusal with a sentence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after_s: None }
    }

    /// A 422 that names its fields; the sentence is made of them.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let sentences: Vec<_> = errors.iter().map(|e| format!("{}: {}", e.pointer, e.detail)).collect();
        Self { code: Code::Invalid, detail: sentences.join("; "), errors, retry_after_s: None }
    }

    /// A 422 for one field, parameter or header.
    pub fn field(name: &str, detail: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { pointer: format!("/{name}"), detail: detail.into() }])
    }

    /// A limit was reached; trying again after `retry_after_s` may help.
    pub fn exhausted(detail: impl Into<String>, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(Code::ResourceExhausted, detail) }
    }

    /// Not now; trying again after `retry_after_s` may help.
    pub fn unavailable(detail: impl Into<String>, retry_after_s: u32) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(Code::Unavailable, detail) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_own_text_and_an_error_status() {
        let texts: std::collections::BTreeSet<_> = Code::ALL.iter().map(|c| c.text()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|c| (400..600).contains(&c.http())));
    }
}
