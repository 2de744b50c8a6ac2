// The values of the form of a cluster, and the definition that they stand for.
import type { Cluster } from "../api/types.ts";
import type { Pairs } from "../ui/form.tsx";
import { isObject, type Json, type JsonObject } from "./merge_patch.ts";
import { wrongValue } from "./problems.ts";
import { durationOf, listOf, pairsOf, type PropertyValue, propertiesOf, secondsOf } from "./values.ts";

export type Kind = "static" | "process" | "kubernetes";

export interface Endpoint {
  address: string;
  tls_server_name: string;
  token_env: string;
}

/** Texts of one provider by the name of their field. */
export type Texts = Record<string, string>;

export interface ClusterValues {
  name: string;
  engine: string;
  pending: boolean;
  engineVersion: string;
  clientVersions: string;
  orgs: string;
  kind: Kind;
  endpoints: Endpoint[];
  shared: boolean;
  texts: Texts;
  properties: Pairs;
  /** Fields of Kubernetes that have no input of their own, as JSON. */
  more: string;
  idlePolicy: string;
  wake: string;
  times: Record<TimeField, string>;
}

export type TimeField = "idle_timeout" | "close_after_idle" | "max_lifetime" | "provisioning_deadline";
export const TIMES: TimeField[] = ["idle_timeout", "close_after_idle", "max_lifetime", "provisioning_deadline"];

/** The fields of each provider that are one text. */
export const TEXTS: Record<Kind, string[]> = {
  static: [],
  process: ["program", "java_home", "python", "driver_memory"],
  kubernetes: ["namespace", "image", "cpu", "memory", "ephemeral_storage", "spark_home", "python", "driver_memory"],
};

/** What the API sets itself. */
const OUTPUT_ONLY = ["warm_pools"];

export const NO_ENDPOINT: Endpoint = { address: "", tls_server_name: "", token_env: "" };

export function emptyCluster(): ClusterValues {
  return {
    name: "", engine: "sail", pending: false, engineVersion: "", clientVersions: "", orgs: "", kind: "kubernetes", endpoints: [NO_ENDPOINT], shared: false,
    texts: {}, properties: [], more: "", idlePolicy: "", wake: "", times: { idle_timeout: "", close_after_idle: "", max_lifetime: "", provisioning_deadline: "" },
  };
}

function providerOf(cluster: Cluster): [Kind, JsonObject] {
  const [kind, value] = Object.entries(cluster.provider ?? {}).find(([, each]) => each !== null) ?? ["kubernetes", {}];
  return [kind as Kind, { ...(value as JsonObject) }];
}

export function clusterValues(cluster: Cluster): ClusterValues {
  const [kind, provider] = providerOf(cluster);
  const text = (name: string) => (typeof provider[name] === "string" ? (provider[name] as string) : "");
  const own = ["properties", ...TEXTS[kind], ...OUTPUT_ONLY];
  const more = Object.fromEntries(Object.entries(provider).filter(([name, value]) => !own.includes(name) && !isUnset(value)));
  return {
    ...emptyCluster(),
    name: cluster.name,
    engine: cluster.engine,
    engineVersion: cluster.engine_version,
    clientVersions: cluster.client_versions.join(", "),
    orgs: cluster.granted_orgs.join(", "),
    kind,
    endpoints: ((provider["endpoints"] ?? []) as unknown as Endpoint[]).map((each) => ({ ...NO_ENDPOINT, ...each })),
    shared: provider["allow_shared_untrusted"] === true,
    texts: Object.fromEntries(TEXTS[kind].map((name) => [name, text(name)])),
    properties: pairsOf((provider["properties"] ?? {}) as Record<string, PropertyValue>),
    more: kind === "kubernetes" && Object.keys(more).length > 0 ? JSON.stringify(more, null, 2) : "",
    idlePolicy: cluster.idle_policy,
    wake: cluster.wake,
    times: Object.fromEntries(TIMES.map((field) => [field, secondsOf(cluster[field])])) as Record<TimeField, string>,
  };
}

function isUnset(value: Json): boolean {
  return value === null || value === "" || value === 0 || (Array.isArray(value) && value.length === 0) || (isObject(value) && Object.keys(value).length === 0);
}

/** The definition. */
export function clusterDefinition(values: ClusterValues): JsonObject {
  const definition: JsonObject = {
    name: values.name.trim(),
    engine: values.engine,
    engine_version: values.engineVersion.trim(),
    client_versions: listOf(values.clientVersions),
    granted_orgs: listOf(values.orgs),
    provider: { [values.kind]: providerDefinition(values) },
    idle_policy: values.idlePolicy,
    wake: values.wake,
  };
  for (const field of TIMES) definition[field] = durationOf(values.times[field]);
  return definition;
}

function providerDefinition(values: ClusterValues): JsonObject {
  if (values.kind === "static") {
    const named = values.endpoints.filter((endpoint) => Object.values(endpoint).some((text) => text.trim() !== ""));
    return { endpoints: named.map((endpoint): JsonObject => ({ ...endpoint })), allow_shared_untrusted: values.shared };
  }
  const texts = Object.fromEntries(TEXTS[values.kind].map((name) => [name, (values.texts[name] ?? "").trim()]));
  const provider = { ...texts, properties: propertiesOf(values.properties, false) as JsonObject };
  return values.kind === "kubernetes" ? { ...moreOf(values.more), ...provider } : provider;
}

function moreOf(text: string): JsonObject {
  if (text.trim() === "") return {};
  let value: Json;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw wrongValue("more", `More settings are not JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (!isObject(value)) throw wrongValue("more", "More settings must be an object, like { \"warm_pods\": 2 }");
  const known = ["properties", ...TEXTS.kubernetes].find((name) => name in (value as JsonObject));
  if (known !== undefined) throw wrongValue("more", `"${known}" has a field of its own in this form; set it there`);
  return value;
}
