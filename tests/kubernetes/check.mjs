// Each manifest given must fit the schema of its kind, and a broken one must not: a check that lets everything through is none.
import { readFileSync } from "node:fs";
import * as yaml from "js-yaml";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { HorizontalPodAutoscaler } from "kubernetes-models/autoscaling/v2/HorizontalPodAutoscaler";
import { StatefulSet } from "kubernetes-models/apps/v1/StatefulSet";
import { Service } from "kubernetes-models/v1/Service";
import { NetworkPolicy } from "kubernetes-models/networking.k8s.io/v1/NetworkPolicy";

const kinds = { ScaledObject, HorizontalPodAutoscaler, StatefulSet, Service, NetworkPolicy };
const broken = {
  ScaledObject: (manifest) => (manifest.spec.pollingInterval = "soon"),
  HorizontalPodAutoscaler: (manifest) => (manifest.spec.minReplicas = "none"),
  StatefulSet: (manifest) => (manifest.spec.template.spec.containers[0].ports[0].containerPort = "rest"),
  Service: (manifest) => (manifest.spec.ports[0].port = "rest"),
  NetworkPolicy: (manifest) => (manifest.spec.ingress = "nobody"),
};

function fits(manifest) {
  const kind = kinds[manifest.kind];
  if (!kind) throw new Error(`no schema for the kind ${manifest.kind}`);
  new kind(manifest).validate();
}

let checked = 0;
for (const file of process.argv.slice(2)) {
  for (const manifest of yaml.loadAll(readFileSync(file, "utf8"))) {
    fits(manifest);
    const wrong = structuredClone(manifest);
    broken[manifest.kind](wrong);
    let refused = false;
    try {
      fits(wrong);
    } catch {
      refused = true;
    }
    if (!refused) throw new Error(`${file}: the schema takes anything`);
    checked += 1;
  }
}
console.log(`${checked} manifests fit their schemas`);
