// Generate token: choose a lifetime, then see the token once.
import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { IssuedToken, Session } from "../api/types.ts";
import { day, millis, relative } from "../format.ts";
import { serverNow } from "../api/client.ts";
import { errorText } from "../state/notices.ts";
import { Banner, Button, Code } from "../ui/basics.tsx";
import { Dialog } from "../ui/dialog.tsx";
import { Clients } from "./connect.tsx";

const LIFETIMES: [seconds: number, text: string][] = [
  [900, "15 min"],
  [3600, "1 h"],
  [4 * 3600, "4 h"],
  [8 * 3600, "8 h"],
  [12 * 3600, "12 h"],
];

export function TokenDialog(props: { session: Session; onClose: () => void; onIssued: () => void }) {
  const [issued, setIssued] = useState<IssuedToken | null>(null);
  const take = (token: IssuedToken) => {
    setIssued(token);
    props.onIssued();
  };
  return (
    <Dialog title={issued ? "Your token" : "Generate token"} wide onClose={props.onClose}>
      {issued ? <Result session={props.session} issued={issued} onClose={props.onClose} /> : <Request session={props.session} onIssued={take} onClose={props.onClose} />}
    </Dialog>
  );
}

function Request(props: { session: Session; onIssued: (token: IssuedToken) => void; onClose: () => void }) {
  const [ttl, setTtl] = useState(8 * 3600);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const end = millis(props.session.expires_at);
  const cut = end !== null && serverNow() + ttl * 1000 > end;
  const submit = async (event: Event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setError(null);
    try {
      props.onIssued(await api.post<IssuedToken>(`sessions/${props.session.id}/tokens`, { ttl: `${ttl}s` }));
    } catch (cause) {
      setError(cause);
      setBusy(false);
    }
  };
  return (
    <form onSubmit={submit}>
      <div class="dialog-body">
        <p>A client connects to this session with a token. Everybody who has the token can use the session until it expires, so keep it secret.</p>
        <fieldset class="segments labelled">
          <legend>Lifetime</legend>
          {LIFETIMES.map(([value, text]) => (
            <label key={value}>
              <input type="radio" name="ttl" value={value} checked={ttl === value} onChange={() => setTtl(value)} />
              <span>{text}</span>
            </label>
          ))}
        </fieldset>
        <p class="hint" aria-live="polite">
          {cut ? `The session ends before that: the token expires with it, ${day(props.session.expires_at)}. Extend the session for a longer token.` : `Expires ${day(serverNow() + ttl * 1000)}. A query that runs then continues.`}
        </p>
        {error ? <Banner kind="error" live>{errorText(error)}</Banner> : null}
      </div>
      <div class="dialog-actions">
        <Button onClick={props.onClose}>Cancel</Button>
        <Button kind="primary" type="submit" busy={busy} autofocus>
          Generate token
        </Button>
      </div>
    </form>
  );
}

function Result(props: { session: Session; issued: IssuedToken; onClose: () => void }) {
  const first = useRef<HTMLDivElement>(null);
  const { issued } = props;
  useEffect(() => first.current?.focus(), []);
  return (
    <>
      <div class="dialog-body" ref={first} tabIndex={-1}>
        <Banner kind="warning" title="This is shown once">
          Copy the connection string now: Berth does not store the token. It expires {relative(issued.expires_at)}.
        </Banner>
        <h3>Connection string</h3>
        <Code text={issued.connection_url} what="connection string" />
        <h3>Connect from</h3>
        <Clients session={props.session} url={issued.connection_url} />
      </div>
      <div class="dialog-actions">
        <Button kind="primary" onClick={props.onClose}>
          Done
        </Button>
      </div>
    </>
  );
}
