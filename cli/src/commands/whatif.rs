//! What-if and advice: recorded traffic, or a file's, through the real decision code.

use super::super::output;
use crate::{
    cli::{AdviseArgs, SimulateArgs, TrafficArgs},
    client::{Client, Failed},
};
use capstan_common::{
    function::{FunctionSpec, Overrides, OverridesPatch},
    resource::Amount,
    validate::{self, Source},
};
use capstan_scheduler_core::{autoscaler::Quota, function::ZeroRule};
use capstan_simulator::{Machine, Outcome, Scenario, Summary, Trace, advice, look_equally_long, plot, replay};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Slices of time in the terminal's picture.
const SLICES: usize = 60;

/// The function that is live, with everything that has a say on it, and the traffic.
async fn load(client: &Client, traffic: &TrafficArgs) -> anyhow::Result<(Scenario, Trace)> {
    let scenario = match &traffic.from {
        Some(function) => live(client, function).await?,
        None => Scenario::of(serde_json::from_value(json!({"runtime": {"process": {"command": ["true"]}}}))?),
    };
    let text = match (&traffic.trace, &traffic.from) {
        (Some(file), _) => std::fs::read_to_string(file)
            .map_err(|e| Failed::Usage(format!("--trace {}: cannot be read: {e}", file.display())))?,
        (None, Some(function)) => {
            let response = client.follow(&client.function(function, "trace")).await?;
            response.text().await.map_err(crate::client::broken)?
        }
        (None, None) => {
            let what = "name a function by --from, or traffic by --trace";
            return Err(Failed::Usage(what.into()).into());
        }
    };
    let trace = Trace::read(&text).map_err(Failed::Usage)?;
    if trace.arrivals.is_empty() {
        return Err(Failed::Usage("there are no inputs in the traffic".into()).into());
    }
    Ok((scenario, trace))
}

/// A function with its dynamic settings, the system's cap, and the scale-to-zero configuration's word on its model.
async fn live(client: &Client, function: &str) -> anyhow::Result<Scenario> {
    let spec: FunctionSpec = serde_json::from_value(client.get(&client.function(function, "")).await?["spec"].take())?;
    let settings = client.get(&client.function(function, "autoscaler")).await?;
    let overrides: Overrides = serde_json::from_value(settings["overrides"].clone())?;
    let zero = client.get(&client.function(function, "explain")).await?["scale_to_zero"].take();
    let rule = spec.model_id.is_some().then(|| ZeroRule {
        enabled: zero["enable_scale_to_zero"] == true,
        retention_ms: (zero["retention_s"].as_f64().unwrap_or(0.0) * 1000.0) as u64,
        flag_by: output::text(&zero["decided_by"]["enable_scale_to_zero"]).into(),
        retention_by: output::text(&zero["decided_by"]["retention_period"]).into(),
    });
    let scenario = Scenario { overrides, rule, ..Scenario::of(spec) };
    // Where nobody has set a maximum, what holds is the system's.
    let set = scenario.overrides.over(&scenario.spec.autoscaler).max_containers.is_some();
    let system = settings["effective"]["max_containers"].as_u64().and_then(|most| u32::try_from(most).ok());
    Ok(Scenario { most: system.filter(|_| !set).unwrap_or(scenario.most), ..scenario })
}

/// Lays `--set KEY=VALUE` over what an operator has set: it holds over profiles too.
fn with(scenario: &Scenario, set: &[String]) -> Result<Scenario, Failed> {
    let mut patch = Map::new();
    for pair in set {
        let wrong = || Failed::Usage(format!("--set {pair}: write it as KEY=NUMBER, like scaledown_window=300"));
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        patch.insert(key.trim().into(), value.trim().parse::<u32>().map_err(|_| wrong())?.into());
    }
    let given = |field: &str| match patch.contains_key(field) {
        true => Source::written(", by --set"),
        false => Source::elsewhere(", as it is live"),
    };
    let written: OverridesPatch =
        serde_json::from_value(Value::Object(patch.clone())).map_err(|e| Failed::Usage(format!("--set: {e}")))?;
    let overrides = written.apply(&scenario.overrides);
    validate::settings(&overrides.over(&scenario.spec.autoscaler), &given)
        .map_err(|refusal| Failed::Usage(format!("--set: {}", refusal.detail)))?;
    Ok(Scenario { overrides, ..scenario.clone() })
}

/// Where it is played: with as many places as are said, or as the cluster has for the function.
async fn machine(client: &Client, traffic: &TrafficArgs, scenario: &Scenario) -> Machine {
    let standard = Machine::default();
    let start_us = traffic.start_ms.map_or(standard.start_us, |ms| (ms * 1000.0) as u64);
    let places = match (traffic.places, &traffic.from) {
        (Some(places), _) => Some(places),
        (None, Some(_)) => match places(client, &scenario.spec).await {
            Ok(places) if places > 0 => Some(places),
            Ok(_) => {
                crate::output::say(
                    "note: no worker has room for such a container now; it is played as if there were enough",
                );
                None
            }
            Err(error) => {
                crate::output::say(format!(
                    "note: how many containers have room is not known ({error:#}); it is played as if there were enough"
                ));
                None
            }
        },
        (None, None) => None,
    };
    Machine { places: places.unwrap_or(standard.places), start_us, ..standard }
}

/// How many containers of a function all workers hold, within its namespace's quota: what others hold there is not counted, as
/// nobody knows what they held when the traffic came.
async fn places(client: &Client, spec: &FunctionSpec) -> anyhow::Result<u32> {
    let wishes = spec.gpus();
    let workers = client.get("/v1/workers").await?;
    let held = workers["workers"].as_array().into_iter().flatten().filter(|worker| worker["state"] == "ready");
    let each = held.map(|worker| {
        let capacity = &worker["capacity"];
        let has = Amount {
            cpu_milli: (capacity["cpu"].as_f64().unwrap_or(0.0) * 1000.0).round() as u64,
            memory_mib: capacity["memory_mib"].as_u64().unwrap_or(0),
            gpus: capacity["gpus"].as_array().map_or(0, Vec::len) as u64,
        };
        let model = capacity["gpus"][0]["model"].as_str().unwrap_or("");
        let fits = wishes.is_empty() || wishes.iter().any(|wish| wish.takes(model));
        if fits { has.holds(spec.amount()) } else { 0 }
    });
    let all = each.fold(0_u32, u32::saturating_add);
    let space = client.get(&format!("/v1/namespaces/{}", client.namespace)).await?;
    let of = |field: &str| space["quota"][field].as_f64();
    let quota = Quota {
        containers: of("containers").map(|n| n as u32),
        cpu_milli: of("cpu").map(|cores| (cores * 1000.0).round() as u64),
        memory_mib: of("memory_mib").map(|mib| mib as u64),
        gpus: of("gpus").map(|n| n as u32),
    };
    Ok(all.min(quota.room(0, Amount::default(), spec.amount())))
}

fn play(scenario: &Scenario, trace: &Trace, machine: &Machine) -> Result<Outcome, Failed> {
    replay(scenario, trace, machine).map_err(Failed::Usage)
}

fn row(name: &str, s: &Summary) -> Vec<String> {
    vec![
        name.to_owned(),
        s.cold_starts.to_string(),
        format!("{:.1} / {:.1} / {:.1} ms", s.wait_p50_ms, s.wait_p95_ms, s.wait_p99_ms),
        format!("{:.1}", s.container_s),
        s.peak_containers.to_string(),
    ]
}

const HEAD: [&str; 5] = ["settings", "cold starts", "waiting p50 / p95 / p99", "container-seconds", "peak"];

/// Plays traffic with the live and the proposed settings, side by side.
pub async fn simulate(client: &Client, args: SimulateArgs, as_json: bool) -> anyhow::Result<()> {
    let (scenario, trace) = load(client, &args.traffic).await?;
    let proposed = with(&scenario, &args.set)?;
    let machine = machine(client, &args.traffic, &scenario).await;
    let mut live = play(&scenario, &trace, &machine)?;
    let mut other = if args.set.is_empty() { None } else { Some(play(&proposed, &trace, &machine)?) };
    look_equally_long(&mut std::iter::once(&mut live).chain(other.as_mut()).collect::<Vec<_>>());
    let mut both = vec![("live", &live)];
    both.extend(other.as_ref().map(|outcome| ("proposed", outcome)));
    if let Some(file) = &args.svg {
        write(file, &plot::svg(&both))?;
    }
    if as_json {
        let mut told: Map<String, Value> =
            both.iter().map(|(name, outcome)| ((*name).to_owned(), json!(outcome.summary()))).collect();
        told.insert("places".into(), machine.places.into());
        return output::print_json(&Value::Object(told));
    }
    output::print(output::table(&HEAD, both.iter().map(|(name, outcome)| row(name, &outcome.summary()))))?;
    if both.iter().any(|(_, outcome)| outcome.peak >= machine.places) {
        let what = "containers have room at one time (--places), and that was reached";
        output::print(format!("{} {what}", machine.places))?;
    }
    for (name, outcome) in both.iter().filter(|(_, outcome)| outcome.unserved > 0) {
        output::print(format!("{name}: {} inputs never began: no container came for them", outcome.unserved))?;
    }
    let most = both.iter().map(|(_, outcome)| outcome.peak).max().unwrap_or(0);
    for (name, outcome) in &both {
        output::print(format!("{name:>9} {}", plot::blocks(&outcome.over_time(SLICES), most)))?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), Failed> {
    std::fs::write(file, text).map_err(|e| Failed::Usage(format!("--svg {}: {e}", file.display())))
}

/// Proposes settings that keep a bound on waiting, with the evidence.
pub async fn advise(client: &Client, args: AdviseArgs, as_json: bool) -> anyhow::Result<()> {
    let (scenario, trace) = load(client, &args.traffic).await?;
    let p95_ms = capstan_scheduler_core::scale_to_zero::duration_ms(&args.p95_wait)
        .map_err(|e| Failed::Usage(format!("--p95-wait: {e}")))?;
    let machine = machine(client, &args.traffic, &scenario).await;
    let advice = advice::advise(&scenario, &trace, &machine, p95_ms as f64).map_err(Failed::Usage)?;
    if as_json {
        return output::print_json(&json!(advice));
    }
    let name = |tried: &advice::Tried| {
        let s = &tried.settings;
        format!("min {} buffer {} window {}", s.min_containers, s.buffer_containers, s.scaledown_window)
    };
    let mut rows = vec![row(&format!("now: {}", name(&advice.now)), &advice.now.summary)];
    rows.extend(advice.others.iter().map(|tried| row(&name(tried), &tried.summary)));
    output::print(output::table(&HEAD, rows))?;
    let Some(proposed) = &advice.proposed else {
        return output::print(format!("none of the settings that were tried keeps 95 of 100 inputs under {p95_ms} ms"));
    };
    let s = &proposed.settings;
    output::print(format!("proposed: {}; nothing was changed", name(proposed)))?;
    let Some(function) = &args.traffic.from else { return Ok(()) };
    output::print(format!(
        "to apply it: capstan autoscaler {function} --min {} --buffer {} --window {}",
        s.min_containers, s.buffer_containers, s.scaledown_window
    ))
}
