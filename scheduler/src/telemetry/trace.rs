//! One trace an input, told to an OTLP collector: submit → queue → (decide → start, with its phases: place, order, …) → each
//! attempt → run → outcome.
//!
//! Spans are made when an input has ended, from the times that its record carries.

use capstan_common::{
    container::Phase,
    id::{CallId, ContainerId, FunctionKey},
    input::Outcome,
    time::Time,
    trace::{self, span_of, trace_of},
};
use capstan_scheduler_core::record::{Entry, PastAttempt};
use opentelemetry::{
    KeyValue,
    trace::{
        Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer as _,
        TracerProvider,
    },
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{IdGenerator, RandomIdGenerator, SdkTracerProvider},
};
use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Makes spans of what records tell.
pub struct Tracer {
    provider: SdkTracerProvider,
    tracer: opentelemetry_sdk::trace::SdkTracer,
    starts: Mutex<BTreeMap<ContainerId, Start>>,
    parents: Mutex<BTreeMap<CallId, Arc<str>>>,
}

#[derive(Clone)]
struct Start {
    decided: Time,
    phases: Vec<Phase>,
}

fn at(time: Time) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(time.0)
}

/// The span context of a client's trace context.
pub fn parse_traceparent(text: &str) -> Option<SpanContext> {
    let known = trace::context(trace::parent_of(text), None)?;
    let mut parts = known.split('-').skip(1);
    let trace = TraceId::from_hex(parts.next()?).ok()?;
    let span = SpanId::from_hex(parts.next()?).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
    Some(SpanContext::new(trace, span, flags, true, TraceState::default()))
}

/// Ids of spans that programs were told of are known before; all others are drawn.
#[derive(Debug)]
struct Ids;

thread_local! {
    static NEXT: Cell<(Option<u128>, Option<u64>)> = const { Cell::new((None, None)) };
}

impl Ids {
    /// The next trace that this thread begins has this id.
    fn next_trace(id: u128) {
        NEXT.set((Some(id), None));
    }

    /// The next span that this thread begins has this id.
    fn next_span(id: u64) {
        NEXT.set((None, Some(id)));
    }
}

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        let (trace, _) = NEXT.take();
        trace.map_or_else(|| RandomIdGenerator::default().new_trace_id(), |id| TraceId::from_bytes(id.to_be_bytes()))
    }

    fn new_span_id(&self) -> SpanId {
        let (trace, span) = NEXT.take();
        NEXT.set((trace, None));
        span.map_or_else(|| RandomIdGenerator::default().new_span_id(), |id| SpanId::from_bytes(id.to_be_bytes()))
    }
}

/// The exporter that the environment asks for: `OTEL_EXPORTER_OTLP_PROTOCOL` is `grpc` or `http/protobuf`; without it the
/// usual port of the latter, 4318, means the latter.
fn exporter(endpoint: &str) -> Result<SpanExporter, Box<dyn std::error::Error>> {
    if endpoint.starts_with("https:") {
        return Err("https is not supported; send traces to a collector on this machine or in this network".into());
    }
    let protocol = std::env::var("OTEL_EXPORTER_OTLP_PROTOCOL").ok().filter(|p| !p.is_empty());
    let usual = if endpoint.trim_end_matches('/').ends_with(":4318") { "http/protobuf" } else { "grpc" };
    match protocol.as_deref().unwrap_or(usual) {
        "grpc" => Ok(SpanExporter::builder().with_tonic().build()?),
        // Built on a thread without a runtime: its client blocks.
        "http/protobuf" => std::thread::scope(|scope| {
            let built = scope.spawn(|| SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build());
            Ok(built.join().map_err(|_| "the exporter cannot be built")??)
        }),
        other => Err(format!("OTEL_EXPORTER_OTLP_PROTOCOL is `{other}`; grpc and http/protobuf are supported").into()),
    }
}

impl Tracer {
    /// Exports to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names; `None` where it names none.
    pub fn from_env() -> Option<Self> {
        let endpoint = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok().filter(|v| !v.is_empty())?;
        let exporter = match exporter(&endpoint) {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::error!(%error, "OTEL_EXPORTER_OTLP_ENDPOINT cannot be used: no traces are exported");
                return None;
            }
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_id_generator(Ids)
            .with_resource(Resource::builder().with_service_name("capstan").build())
            .build();
        let tracer = provider.tracer("capstan");
        Some(Self { provider, tracer, starts: Mutex::default(), parents: Mutex::default() })
    }

    /// The trace that a call's inputs belong to.
    pub fn parent(&self, call: CallId, traceparent: &Arc<str>) {
        if !traceparent.is_empty() {
            let mut parents = self.parents.lock().unwrap_or_else(PoisonError::into_inner);
            parents.insert(call, traceparent.clone());
        }
    }

    /// The call has ended.
    pub fn forget(&self, call: CallId) {
        self.parents.lock().unwrap_or_else(PoisonError::into_inner).remove(&call);
    }

    /// A container became ready: the first input that it takes carries its start.
    pub fn started(&self, container: ContainerId, decided: Time, phases: &[Phase]) {
        let start = Start { decided, phases: phases.to_vec() };
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).insert(container, start);
    }

    /// A container ended.
    pub fn ended(&self, container: ContainerId) {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).remove(&container);
    }

    /// Inputs ended.
    pub fn settled(&self, function: &FunctionKey, call: CallId, entries: &[Entry]) {
        let parent = self.parents.lock().unwrap_or_else(PoisonError::into_inner).get(&call).cloned();
        let parent = parent.and_then(|text| parse_traceparent(&text));
        for entry in entries.iter().filter(|e| e.attempts > 0) {
            self.input(function, call, entry, parent.as_ref());
        }
    }

    fn input(&self, function: &FunctionKey, call: CallId, entry: &Entry, parent: Option<&SpanContext>) {
        let root = opentelemetry::Context::new();
        let root = parent.map_or(root.clone(), |p| root.with_remote_span_context(p.clone()));
        Ids::next_trace(trace_of(call, entry.index));
        let begun = Time(entry.finished.0.saturating_sub(entry.run_us)).max(entry.leased);
        let mut span = self
            .tracer
            .span_builder("input")
            .with_kind(SpanKind::Server)
            .with_start_time(at(entry.submitted))
            .with_attributes([
                KeyValue::new("capstan.function", function.to_string()),
                KeyValue::new("capstan.call", call.to_string()),
                KeyValue::new("capstan.index", entry.index as i64),
                KeyValue::new("capstan.attempts", i64::from(entry.attempts)),
                KeyValue::new("capstan.container", entry.container.to_string()),
            ])
            .start_with_context(&self.tracer, &root);
        match &entry.outcome {
            Outcome::Succeeded(_) => span.set_status(Status::Ok),
            Outcome::Failed(failure) => span.set_status(Status::error(failure.message.clone())),
            Outcome::Cancelled => span.set_status(Status::error("cancelled")),
        }
        let inside = root.with_remote_span_context(span.span_context().clone());
        let mut waits_from = entry.submitted;
        let id_of = |attempt| span_of(call, entry.index, attempt);
        // The oldest of many attempts are not remembered one by one.
        let forgotten = entry.tries.as_ref().map_or(0, |t| t.count() - t.past.len() as u32);
        for (number, past) in (forgotten + 1..).zip(entry.tries.iter().flat_map(|t| &t.past)) {
            self.part("queue", waits_from, past.leased, &inside);
            Ids::next_span(id_of(number));
            self.attempt(past, &inside);
            waits_from = past.ended;
        }
        self.part("queue", waits_from, entry.leased, &inside);
        let start = self.starts.lock().unwrap_or_else(PoisonError::into_inner).remove(&entry.container);
        if let Some(start) = start {
            self.part("decide", entry.submitted.min(start.decided), start.decided, &inside);
            self.start(&start, &inside);
        }
        Ids::next_span(id_of(entry.attempts));
        self.part("run", begun, entry.finished, &inside);
        span.end_with_timestamp(at(entry.finished));
    }

    /// An attempt that did not end its input.
    fn attempt(&self, past: &PastAttempt, inside: &opentelemetry::Context) {
        let mut span = self
            .tracer
            .span_builder("attempt")
            .with_start_time(at(past.leased))
            .with_attributes([
                KeyValue::new("capstan.container", past.container.to_string()),
                KeyValue::new("capstan.lost", past.lost),
            ])
            .start_with_context(&self.tracer, inside);
        span.set_status(Status::error(past.why.clone()));
        span.end_with_timestamp(at(past.ended));
    }

    fn start(&self, start: &Start, inside: &opentelemetry::Context) {
        let total: u64 = start.phases.iter().map(|p| p.us).sum();
        let end = Time(start.decided.0 + total);
        let context = self.part("start", start.decided, end, inside);
        let mut from = start.decided;
        for phase in &start.phases {
            let to = Time(from.0 + phase.us);
            self.part(&format!("start.{}", phase.name), from, to, &context);
            from = to;
        }
    }

    fn part(&self, name: &str, from: Time, to: Time, inside: &opentelemetry::Context) -> opentelemetry::Context {
        let mut span = self
            .tracer
            .span_builder(name.to_owned())
            .with_start_time(at(from))
            .start_with_context(&self.tracer, inside);
        let context = inside.with_remote_span_context(span.span_context().clone());
        span.end_with_timestamp(at(to.max(from)));
        context
    }

    /// Sends what waits.
    pub fn shutdown(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last traces were not exported");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_traceparent;

    #[test]
    fn only_well_formed_trace_contexts_are_taken() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(parse_traceparent(good).is_some());
        for bad in ["", "00", "00-0-0-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"] {
            assert!(parse_traceparent(bad).is_none(), "{bad}");
        }
    }
}
