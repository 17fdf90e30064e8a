//! Schemas of what may be written in more than one way, for the description of the interface.

use crate::{function::Retries, refusal::Code};
use std::borrow::Cow;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        Ref, RefOr,
        schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type},
    },
};

/// An object, or a number of retries a fixed second apart.
pub fn retries() -> RefOr<Schema> {
    let count = ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::Integer))
        .description(Some("so many retries, a fixed second apart"))
        .minimum(Some(0))
        .maximum(Some(1000));
    OneOfBuilder::new()
        .item(Ref::from_schema_name(Retries::name()))
        .item(count)
        .description(Some("What follows a failed attempt: an object, or a number of retries."))
        .into()
}

/// GPUs by preference, or one of them without the list.
pub fn gpus() -> RefOr<Schema> {
    OneOfBuilder::new()
        .item(ArrayBuilder::new().items(String::schema()))
        .item(String::schema())
        .description(Some(
            "GPUs by preference, like [\"H100:2\", \"A100\"]: the first that can be placed is taken. \"any\" for any, \"H100!\" for no \
             better one; one may be written without the list.",
        ))
        .examples([serde_json::json!(["H100:2", "A100-80GB"])])
        .into()
}

impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let codes = Code::ALL.iter().map(|code| code.text());
        ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .enum_values(Some(codes))
            .description(Some("Why something was refused; stable."))
            .into()
    }
}

impl ToSchema for Code {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("ProblemCode")
    }
}
