// Uses what openapi-typescript makes of the interface's document: types alone, with a client that reads them.
import createClient from "openapi-fetch";
import type { components, paths } from "./api";

type FunctionSpec = components["schemas"]["FunctionSpec"];

const [url, token] = process.argv.slice(2) as [string, string];
const client = createClient<paths>({ baseUrl: url, headers: { authorization: `Bearer ${token}` } });
const path = { ns: "default", fn: "generated-ts" };

function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

async function main(): Promise<void> {
  const spec: FunctionSpec = { runtime: { process: { command: ["cat"] } }, protocol: "exec" };
  const deployed = await client.PUT("/v1/namespaces/{ns}/functions/{fn}", { params: { path }, body: spec });
  check(deployed.response.status === 201, "a new function");
  const invoked = await client.POST("/v1/namespaces/{ns}/functions/{fn}/invoke", { params: { path }, body: { a: 1 } });
  check(JSON.stringify(invoked.data) === '{"a":1}', "the output");
  const query = { function: path.fn, state: "succeeded" as const, limit: 3 };
  const calls = await client.GET("/v1/calls", { params: { query } });
  const call = calls.data?.calls[0];
  check(call?.inputs.succeeded === 1, "a call that succeeded");
  const stats = await client.GET("/v1/namespaces/{ns}/functions/{fn}/stats", { params: { path } });
  check(stats.data?.backlog === 0, "no backlog");
  const absent = await client.GET("/v1/namespaces/{ns}/functions/{fn}", { params: { path: { ns: "default", fn: "absent" } } });
  check(absent.error?.code === "not_found" && absent.error.status === 404, "a problem document");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
