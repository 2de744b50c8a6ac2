// "Connect from": a tab for each client.
import { useRef, useState } from "preact/hooks";
import type { Session } from "../api/types.ts";
import { installation } from "../state/auth.ts";
import { Banner, Button, Card, Code } from "../ui/basics.tsx";
import { Tabs } from "../ui/tabs.tsx";
import { snippets } from "./snippets.ts";

/** What stands for the token until one is generated. */
const PLACEHOLDER = "TOKEN";

export function Connect(props: { session: Session; onToken: () => void }) {
  const { session } = props;
  return (
    <Card
      title="Connect from"
      hint={
        <>
          Generate a token; it replaces <code>{PLACEHOLDER}</code> here and is shown once.
        </>
      }
      actions={
        <Button small icon="key" label="Generate token to connect" onClick={props.onToken}>
          Generate token
        </Button>
      }
    >
      <Clients session={session} url={placeholderUrl(session)} />
    </Card>
  );
}

/** The form of the connection string that token-issuer will return. */
function placeholderUrl(session: Session): string {
  const at = installation();
  const ssl = at.proxy_tls ? "use_ssl=true;" : "";
  return `sc://${at.proxy_host ?? "localhost"}:${at.proxy_port ?? 8085}/;${ssl}token=${PLACEHOLDER};x-session-id=${session.id}`;
}

let lastClient = "pyspark4";

export function Clients(props: { session: Session; url: string }) {
  const at = installation();
  const [chosen, setChosen] = useState(lastClient);
  const list = useRef({ url: "", snippets: [] as ReturnType<typeof snippets> });
  if (list.current.url !== props.url) {
    const target = { url: props.url, sessionId: props.session.id, tls: at.proxy_tls ?? props.url.includes("use_ssl=true"), privateCa: at.proxy_ca ?? false, engine: props.session.engine };
    list.current = { url: props.url, snippets: snippets(target) };
  }
  const all = list.current.snippets;
  const snippet = all.find((each) => each.id === chosen) ?? all[0];
  if (!snippet) return null;
  return (
    <Tabs
      label="Client"
      tabs={all.map((each) => [each.id, each.name])}
      chosen={snippet.id}
      onChoose={(id) => {
        lastClient = id;
        setChosen(id);
      }}
    >
      {snippet.impossible ? (
        <Banner kind="warning" title={`${snippet.name} cannot connect here`}>
          {snippet.impossible}
        </Banner>
      ) : null}
      {snippet.install ? <Code text={snippet.install} what="installation" /> : null}
      <Code text={snippet.code} what={`program for ${snippet.name}`} />
      <ul class="notes">
        {snippet.notes.map((note) => (
          <li key={note}>{note}</li>
        ))}
      </ul>
    </Tabs>
  );
}
