// Where the compute of a cluster runs: one card with the fields of its provider.
import { Button, Card } from "../ui/basics.tsx";
import { CheckField, PairsField, TextAreaField, TextField } from "../ui/form.tsx";
import { type Kind, NO_ENDPOINT, type Endpoint } from "./cluster_values.ts";
import type { PartProps } from "./cluster_form.tsx";
import { otherProblems, problemAt } from "./problems.ts";

const MAX_PROPERTIES = 256;
const MAX_ENDPOINTS = 64;

const KINDS: [kind: Kind, name: string, text: string][] = [
  ["kubernetes", "Kubernetes pods", "One pod for each session"],
  ["process", "Processes", "One process for each session on the machine of session-manager"],
  ["static", "Existing servers", "Spark Connect servers that sessions share"],
];

interface TextOf {
  field: string;
  label: string;
  hint: string;
  optional?: boolean;
}

const PROCESS: TextOf[] = [
  { field: "program", label: "Program", hint: "Sail: the program. Apache Spark: the folder SPARK_HOME. An absolute path on the machine of session-manager." },
  { field: "java_home", label: "Java", hint: "The folder JAVA_HOME, for Apache Spark.", optional: true },
  { field: "python", label: "Python", hint: "The program that runs Python functions, for Apache Spark.", optional: true },
  { field: "driver_memory", label: "Memory of the driver", hint: "For Apache Spark; for example 2g.", optional: true },
];

const KUBERNETES: TextOf[] = [
  { field: "namespace", label: "Namespace", hint: "One of compute.kubernetes.namespaces of session-manager." },
  { field: "image", label: "Image", hint: "The container image of the engine." },
  { field: "cpu", label: "CPU", hint: "Of each pod, for example 2; empty with profiles.", optional: true },
  { field: "memory", label: "Memory", hint: "Of each pod, for example 4Gi; empty with profiles.", optional: true },
  { field: "ephemeral_storage", label: "Disk", hint: "That a pod may fill; 10Gi if empty.", optional: true },
  { field: "spark_home", label: "SPARK_HOME in the image", hint: "For Apache Spark; /opt/spark if empty.", optional: true },
  { field: "python", label: "Python in the image", hint: "For Apache Spark.", optional: true },
  { field: "driver_memory", label: "Memory of the driver", hint: "For Apache Spark; for example 2g.", optional: true },
];

/** Fields that show their own problems; the rest is shown at the settings of the engine. */
export const PROVIDER_FIELDS = ["provider", "endpoints", "allow_shared_untrusted", "more", ...new Set([...PROCESS, ...KUBERNETES].map((each) => each.field))];

/** Fields of Kubernetes in the text area. */
const MORE = ["command", "image_pull_secrets", "node_selector", "tolerations", "profiles", "pod_template", "service_account", "workers", "warm_pods", "warm_catalogs"];

export function ProviderCard(props: PartProps & { isNew: boolean; others: string[] }) {
  const { values, set, problems, isNew } = props;
  return (
    <Card title="Where its compute runs" hint={isNew ? undefined : "Engine and provider of a cluster cannot change; create another cluster for that."}>
      {isNew ? <KindChoice value={values.kind} error={problemAt(problems, "provider")} onValue={(kind) => set({ kind })} /> : null}
      {values.kind === "static" ? <Servers {...props} /> : null}
      {values.kind === "process" ? <TextsOf {...props} fields={PROCESS} /> : null}
      {values.kind === "kubernetes" ? <TextsOf {...props} fields={KUBERNETES} /> : null}
      {values.kind === "static" ? null : (
        <PairsField
          legend="Settings of the engine"
          noun="setting"
          optional
          value={values.properties}
          max={MAX_PROPERTIES}
          hint="Environment variables of Sail, or properties of Apache Spark."
          error={otherProblems(problems, [...props.others, ...MORE, "cluster"])}
          onValue={(properties) => set({ properties })}
        />
      )}
      {values.kind === "kubernetes" ? (
        <TextAreaField
          label="More settings"
          name="more"
          optional
          value={values.more}
          rows={8}
          placeholder={'{ "warm_pods": 2 }'}
          hint={`JSON with ${MORE.join(", ")}, as in the REST API.`}
          error={problemAt(problems, "more", ...MORE)}
          onValue={(more) => set({ more })}
        />
      ) : null}
    </Card>
  );
}

function KindChoice(props: { value: Kind; error: string | undefined; onValue: (kind: Kind) => void }) {
  return (
    <fieldset class="choices">
      <legend>Provider</legend>
      <div class="choice-list">
        {KINDS.map(([kind, name, text]) => (
          <label key={kind} class="choice">
            <input type="radio" name="provider" value={kind} checked={props.value === kind} onChange={() => props.onValue(kind)} />
            <span class="choice-text">
              <strong>{name}</strong>
              <span class="muted">{text}</span>
            </span>
          </label>
        ))}
      </div>
      {props.error ? <p class="field-error">{props.error}</p> : null}
    </fieldset>
  );
}

function TextsOf(props: PartProps & { fields: TextOf[] }) {
  const { values, set, problems } = props;
  return (
    <div class="columns">
      {props.fields.map(({ field, label, hint, optional }) => (
        <TextField
          key={field}
          label={label}
          name={field}
          optional={optional ?? false}
          mono
          value={values.texts[field] ?? ""}
          hint={hint}
          error={problemAt(problems, field)}
          onValue={(text) => set({ texts: { ...values.texts, [field]: text } })}
        />
      ))}
    </div>
  );
}

const SERVER: [part: keyof Endpoint, label: string, placeholder: string][] = [
  ["address", "Address", "spark.internal:15002"],
  ["tls_server_name", "Name in its certificate", "no TLS"],
  ["token_env", "Variable with its token", "BERTH_SECRET_SPARK"],
];

function Servers(props: PartProps) {
  const { values, set, problems } = props;
  const change = (index: number, part: keyof Endpoint, text: string) => set({ endpoints: values.endpoints.map((each, i) => (i === index ? { ...each, [part]: text } : each)) });
  const error = problemAt(problems, "endpoints");
  return (
    <>
      <fieldset class={`labels${error ? " invalid" : ""}`}>
        <legend>Servers</legend>
        {values.endpoints.map((endpoint, index) => (
          <div class="label-row servers" key={index}>
            {SERVER.map(([part, label, placeholder]) => (
              <input key={part} class="mono" aria-label={`${label} of server ${index + 1}`} placeholder={placeholder} value={endpoint[part]} autocomplete="off" spellcheck={false} onInput={(event) => change(index, part, event.currentTarget.value)} />
            ))}
            <Button kind="quiet" icon="close" label={`Remove server ${index + 1}`} title="Remove" onClick={() => set({ endpoints: values.endpoints.filter((_, i) => i !== index) })} />
          </div>
        ))}
        {error ? <p class="field-error">{error}</p> : null}
        <Button small icon="plus" disabled={values.endpoints.length >= MAX_ENDPOINTS} onClick={() => set({ endpoints: [...values.endpoints, NO_ENDPOINT] })}>
          Add server
        </Button>
      </fieldset>
      <CheckField
        label="Several organizations may share the servers"
        name="allow_shared_untrusted"
        value={values.shared}
        error={problemAt(problems, "allow_shared_untrusted")}
        hint="Only if all of them trust each other: queries run code inside the server. Otherwise name exactly one organization above."
        onValue={(shared) => set({ shared })}
      />
    </>
  );
}
