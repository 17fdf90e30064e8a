//! Kubernetes' metrics interfaces: models' gauges in the shapes that an HPA asks for, by an `External` and by an `Object` metric
//! (SPEC D14, §3.8).

use super::{
    ask::{asker, telling},
    problem::query,
};
use crate::{
    clock,
    route::{Gathered, Route},
};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use capstan_common::{id::FunctionKey, refusal::Refusal};
use capstan_verb::model::{GAUGES, Gauge, Gauges, GaugesView};
use serde::Deserialize;
use serde_json::{Value, json};

const EXTERNAL: &str = "external.metrics.k8s.io/v1beta1";
const CUSTOM: &str = "custom.metrics.k8s.io/v1beta2";
/// What an `Object` metric describes, as manifests of the guide have it.
const OBJECT: (&str, &str, &str) = ("variantautoscalings.llmd.ai", "VariantAutoscaling", "llmd.ai/v1alpha1");

/// A failure as Kubernetes' clients read it.
fn status(code: u16, reason: &str, message: impl Into<String>) -> HttpResponse {
    let code_of = actix_web::http::StatusCode::from_u16(code).unwrap_or_default();
    HttpResponse::build(code_of).json(json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message.into(), "reason": reason, "code": code,
    }))
}

fn unknown_metric(metric: &str) -> HttpResponse {
    status(404, "NotFound", format!("there is no metric `{metric}`; there are {}", GAUGES.join(", ")))
}

fn resources(group_version: &str, prefix: &str, kind: &str) -> HttpResponse {
    let resource = |metric: &&str| {
        json!({
            "name": format!("{prefix}{metric}"), "singularName": "", "namespaced": true, "kind": kind, "verbs": ["get"],
        })
    };
    HttpResponse::Ok().json(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version,
        "resources": GAUGES.iter().map(resource).collect::<Vec<_>>(),
    }))
}

pub async fn external_resources() -> HttpResponse {
    resources(EXTERNAL, "", "ExternalMetricValueList")
}

pub async fn custom_resources() -> HttpResponse {
    resources(CUSTOM, &format!("{}/", OBJECT.0), "MetricValueList")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Selected {
    #[serde(default, rename = "labelSelector")]
    labels: String,
    #[serde(default, rename = "metricLabelSelector")]
    metric_labels: String,
}

/// One requirement of a label selector.
struct Requirement {
    label: String,
    values: Vec<String>,
    /// Whether the label must have one of the values, or with none just be there; or must not.
    wanted: bool,
}

/// Reads a label selector: `a=b`, `a!=b`, `a in (b,c)`, `a notin (b)`, `a`, `!a`, separated by commas.
fn selector(text: &str) -> Result<Vec<Requirement>, Refusal> {
    let mut parts = Vec::new();
    let (mut depth, mut part) = (0, String::new());
    for character in text.chars() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(character);
    }
    parts.push(part);
    parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()).map(requirement).collect()
}

fn requirement(part: &str) -> Result<Requirement, Refusal> {
    let one = |label: &str, value: &str, wanted| Requirement {
        label: label.trim().into(),
        values: vec![value.trim().into()],
        wanted,
    };
    for (sign, wanted) in [(" notin ", false), (" in ", true)] {
        if let Some((label, list)) = part.split_once(sign) {
            let list = list.trim().strip_prefix('(').and_then(|list| list.strip_suffix(')'));
            let wrong = || Refusal::field("labelSelector", format!("`{part}` must be like `label in (a,b)`"));
            let values = list.ok_or_else(wrong)?.split(',').map(|value| value.trim().to_owned()).collect();
            return Ok(Requirement { label: label.trim().into(), values, wanted });
        }
    }
    for (sign, wanted) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((label, value)) = part.split_once(sign) {
            return Ok(one(label, value, wanted));
        }
    }
    let (label, wanted) = part.strip_prefix('!').map_or((part, true), |label| (label, false));
    Ok(Requirement { label: label.trim().into(), values: Vec::new(), wanted })
}

fn selects(requirements: &[Requirement], gauge: &Gauge) -> bool {
    requirements.iter().all(|requirement| {
        let value = gauge.labels.get(&requirement.label);
        let has = value.is_some_and(|value| requirement.values.is_empty() || requirement.values.contains(value));
        has == requirement.wanted
    })
}

/// A number as Kubernetes writes quantities: whole, or in thousandths.
fn quantity(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{:.0}m", value * 1000.0) }
}

fn bad(refusal: &Refusal) -> HttpResponse {
    status(400, "BadRequest", refusal.detail.clone())
}

/// A namespace's gauges of all schedulers, and how an answer made of them begins.
async fn gauges(
    route: &Route,
    request: &HttpRequest,
    namespace: String,
) -> Result<(Vec<Gauge>, HttpResponseBuilder), Refusal> {
    let who = asker(request);
    let Gathered { answer: GaugesView { gauges }, silent } = route.gather(&who, Gauges { namespace }).await?;
    Ok((gauges, telling(&who, silent)))
}

fn refused(refusal: &Refusal) -> HttpResponse {
    status(refusal.code.http(), refusal.code.title(), refusal.detail.clone())
}

pub async fn external(
    route: web::Data<Route>,
    request: HttpRequest,
    path: web::Path<(String, String)>,
) -> HttpResponse {
    let (namespace, metric) = path.into_inner();
    if !GAUGES.contains(&metric.as_str()) {
        return unknown_metric(&metric);
    }
    let asked: Selected = match query(&request) {
        Ok(asked) => asked,
        Err(problem) => return status(400, "BadRequest", problem.to_string()),
    };
    let requirements = match selector(&asked.labels) {
        Ok(requirements) => requirements,
        Err(refusal) => return bad(&refusal),
    };
    let at = clock::rfc3339(clock::now());
    let (gauges, mut response) = match gauges(&route, &request, namespace).await {
        Ok(told) => told,
        Err(refusal) => return refused(&refusal),
    };
    let found = gauges.iter().filter(|gauge| gauge.name == metric);
    let item = |s: &Gauge| json!({"metricName": s.name, "metricLabels": s.labels, "timestamp": at, "value": quantity(s.value)});
    let items: Vec<Value> = found.filter(|s| selects(&requirements, s)).map(item).collect();
    response.json(json!({"kind": "ExternalMetricValueList", "apiVersion": EXTERNAL, "metadata": {}, "items": items}))
}

pub async fn custom(
    route: web::Data<Route>,
    request: HttpRequest,
    path: web::Path<(String, String, String, String)>,
) -> HttpResponse {
    let (namespace, resource, name, metric) = path.into_inner();
    let (plural, kind, version) = OBJECT;
    if resource != plural && Some(&*resource) != plural.split('.').next() {
        return status(404, "NotFound", format!("there are no metrics of `{resource}`; there are of {plural}"));
    }
    if !GAUGES.contains(&metric.as_str()) {
        return unknown_metric(&metric);
    }
    let asked: Selected = match query(&request) {
        Ok(asked) => asked,
        Err(problem) => return status(400, "BadRequest", problem.to_string()),
    };
    let read = selector(&asked.labels).and_then(|labels| Ok((labels, selector(&asked.metric_labels)?)));
    let (labels, metric_labels) = match read {
        Ok(read) => read,
        Err(refusal) => return bad(&refusal),
    };
    let at = clock::rfc3339(clock::now());
    let (gauges, mut response) = match gauges(&route, &request, namespace.clone()).await {
        Ok(told) => told,
        Err(refusal) => return refused(&refusal),
    };
    let found = gauges.iter().filter(|gauge| {
        let named = name == "*" && selects(&labels, gauge) || gauge.labels.get("variant_name") == Some(&name);
        gauge.name == metric && named && selects(&metric_labels, gauge)
    });
    let item = |s: &Gauge| {
        json!({
            "describedObject": {"kind": kind, "namespace": namespace, "name": s.labels["variant_name"], "apiVersion": version},
            "metric": {"name": s.name, "selector": null}, "timestamp": at, "value": quantity(s.value),
        })
    };
    let items: Vec<Value> = found.map(item).collect();
    if items.is_empty() && name != "*" {
        let key = FunctionKey::new(&namespace, &name);
        return status(404, "NotFound", format!("there is no function `{key}` that serves a model"));
    }
    response.json(json!({"kind": "MetricValueList", "apiVersion": CUSTOM, "metadata": {}, "items": items}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_as_kubernetes_writes_them() {
        // SPEC decision D14, section 3.8
        let labels = [("a", "1"), ("b", "x/y-z")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let series = Gauge { name: GAUGES[0].into(), labels: labels.into(), value: 1.0 };
        for (text, holds) in [
            ("", true),
            ("a=1", true),
            ("a==1,b=x/y-z", true),
            ("a!=1", false),
            ("c!=1", true),
            ("a in (1,2)", true),
            ("a in (2, 3),b", false),
            ("a notin (2,3),b", true),
            ("!c", true),
            ("!a", false),
        ] {
            assert_eq!(selects(&selector(text).unwrap(), &series), holds, "{text}");
        }
        assert!(selector("a in 1").is_err());
    }

    #[test]
    fn quantities_are_whole_or_thousandths() {
        for (value, text) in [(0.0, "0"), (3.0, "3"), (1.5, "1500m"), (0.25, "250m")] {
            assert_eq!(quantity(value), text);
        }
    }
}
