//! The REST door: parses, calls the API, renders.

mod body;
mod calls;
mod cluster;
mod functions;
mod govern;
mod guard;
mod map;
mod openapi;
mod problem;

use crate::{api::Api, config::SchedulerConfig};
use actix_web::{App, HttpServer, dev::ServerHandle, middleware::from_fn, web};
use anyhow::Context;
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Serves REST. Answers a handle and the address.
pub fn serve(api: Arc<Api>, config: &SchedulerConfig) -> anyhow::Result<(ServerHandle, SocketAddr)> {
    let gate = web::Data::new(guard::Gate::new(config));
    let shared = web::Data::from(api);
    let server = HttpServer::new(move || {
        App::new().app_data(shared.clone()).app_data(gate.clone()).wrap(from_fn(guard::guard)).configure(routes)
    })
    .workers(config.rest_threads)
    .client_request_timeout(HEAD_TIMEOUT)
    // A client that closes its side has gone: what has not started of its call is cancelled.
    .h1_allow_half_closed(false)
    .keep_alive(IDLE_TIMEOUT)
    .shutdown_timeout(5)
    .disable_signals()
    .bind(config.listen)
    .with_context(|| format!("cannot listen on {}; is another capstan running there?", config.listen))?;
    let address = server.addrs().first().copied().context("no address was bound")?;
    let server = server.run();
    let handle = server.handle();
    actix::spawn(server);
    Ok((handle, address))
}

/// Every route; `openapi` describes the same ones.
pub fn routes(app: &mut web::ServiceConfig) {
    app.service(openapi::swagger())
        .service(web::redirect("/docs", "/docs/"))
        .service(web::resource("/openapi.json").get(openapi::document))
        .service(web::resource("/").get(openapi::home))
        .service(web::resource("/healthz").get(cluster::healthz))
        .service(web::resource("/readyz").get(cluster::readyz))
        .service(web::resource("/metrics").get(cluster::metrics))
        .service(web::resource("/api/v1/query").get(govern::promql))
        .service(
            web::scope("/v1")
                .service(
                    web::scope("/namespaces/{ns}/functions")
                        .service(web::resource("").get(functions::list))
                        .service(
                            web::resource("/{fn}").get(functions::get).put(functions::deploy).delete(functions::remove),
                        )
                        .service(web::resource("/{fn}/autoscaler").get(functions::settings).patch(functions::patch))
                        .service(web::resource("/{fn}/stats").get(functions::stats))
                        .service(web::resource("/{fn}/explain").get(functions::explain))
                        .service(web::resource("/{fn}/trace").get(functions::trace))
                        .service(web::resource("/{fn}/scaling").get(govern::scaling))
                        .service(web::resource("/{fn}/schedule").get(govern::schedule))
                        .service(web::resource("/{fn}/schedule/pause").post(govern::pause))
                        .service(web::resource("/{fn}/schedule/resume").post(govern::resume))
                        .service(web::resource("/{fn}/schedule/run").post(govern::run))
                        .service(web::resource("/{fn}/invoke").post(calls::invoke))
                        .service(web::resource("/{fn}/spawn").post(calls::spawn))
                        .service(web::resource("/{fn}/spawn_map").post(calls::spawn_map))
                        .service(web::resource("/{fn}/map").post(map::map)),
                )
                .service(web::resource("/namespaces").get(govern::namespaces))
                .service(web::resource("/namespaces/{ns}").get(govern::namespace).put(govern::govern))
                .service(web::resource("/scale-to-zero").get(govern::scale_to_zero).put(govern::set_scale_to_zero))
                .service(web::resource("/scale-to-zero/effective").get(govern::effective))
                .service(web::resource("/calls").get(calls::list))
                .service(web::resource("/calls/{id}").get(calls::get))
                .service(web::resource("/calls/{id}/results").get(calls::results))
                .service(web::resource("/calls/{id}/cancel").post(calls::cancel))
                .service(web::resource("/calls/{id}/inputs/{index}/explain").get(calls::explain))
                .service(web::resource("/workers").get(cluster::workers))
                .service(web::resource("/workers/{id}").get(cluster::worker))
                .service(web::resource("/workers/{id}/drain").post(cluster::drain))
                .service(web::resource("/workers/{id}/resume").post(cluster::resume))
                .service(web::resource("/containers").get(cluster::containers))
                .service(web::resource("/containers/{id}/logs").get(cluster::logs))
                .service(web::resource("/containers/{id}/stop").post(cluster::stop))
                .service(web::resource("/events").get(cluster::events)),
        )
        .default_service(web::to(problem::no_route));
}
