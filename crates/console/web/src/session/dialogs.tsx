// Changes of a session: close, extend, keep awake, edit.
import { useState } from "preact/hooks";
import { api, serverNow } from "../api/client.ts";
import type { Session } from "../api/types.ts";
import { day, millis, plural } from "../format.ts";
import { notify } from "../state/notices.ts";
import { Banner } from "../ui/basics.tsx";
import { Confirm } from "../ui/dialog.tsx";
import { labelMap, PairsField, TextField } from "../ui/form.tsx";

interface Props {
  session: Session;
  onClose: () => void;
  onChanged: (session: Session) => void;
}

const HOUR_MS = 3_600_000;
/** A session ends at the latest so long after its creation. */
const MAX_LIFETIME_MS = 7 * 24 * HOUR_MS;
/** A limit that is reached exactly could be exceeded by the time of the call. */
const MARGIN_MS = 60_000;

export function CloseDialog(props: Props) {
  const { session } = props;
  return (
    <Confirm
      title="Close session"
      action="Close session"
      danger
      onClose={props.onClose}
      onConfirm={async () => {
        props.onChanged(await api.post<Session>(`sessions/${session.id}:close`));
        notify("done", `Session ${session.name || session.id} is closed.`);
      }}
    >
      <p>
        Close <strong>{session.name || session.id}</strong>? Its compute is released, running queries end, and its tokens stop working. A closed session cannot be opened again.
      </p>
      {session.active_operations > 0 ? <Banner kind="warning">{plural(session.active_operations, "call")} in flight will be ended.</Banner> : null}
    </Confirm>
  );
}

/** Choices of hours; each is the time in milliseconds to which it leads. */
function choices(from: number, limit: number): [at: number, text: string][] {
  const list = [1, 4, 8, 24].map((hours): [number, string] => [from + hours * HOUR_MS, `${hours} h more`]).filter(([at]) => at < limit);
  return [...list, [limit, "As long as possible"]];
}

function TimeChoice(props: { legend: string; options: [number, string][]; value: number; onValue: (at: number) => void }) {
  return (
    <fieldset class="choices">
      <legend>{props.legend}</legend>
      <div class="choice-list narrow">
        {props.options.map(([at, text]) => (
          <label key={text} class="choice">
            <input type="radio" name="until" checked={props.value === at} onChange={() => props.onValue(at)} />
            <span class="choice-text">
              <strong>{text}</strong>
              <span class="muted">until {day(at)}</span>
            </span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}

export function ExtendDialog(props: Props) {
  const { session } = props;
  const [opened] = useState(serverNow);
  const end = millis(session.expires_at) ?? opened;
  const [options] = useState(() => choices(end, (millis(session.created_at) ?? opened) + MAX_LIFETIME_MS - MARGIN_MS));
  const [at, setAt] = useState(options[0]?.[0] ?? end);
  return (
    <Confirm
      title="Extend session"
      action="Extend session"
      onClose={props.onClose}
      onConfirm={async () => {
        props.onChanged(await api.post<Session>(`sessions/${session.id}:extend`, { expires_at: new Date(at).toISOString() }));
        notify("done", `The session now ends at the latest ${day(at)}.`);
      }}
    >
      <p>The session ends {day(end)} at the latest, even while it is in use. The limit is 7 days after its creation.</p>
      <TimeChoice legend="New end" options={options} value={at} onValue={setAt} />
    </Confirm>
  );
}

export function KeepAliveDialog(props: Props) {
  const { session } = props;
  const [opened] = useState(serverNow);
  const end = millis(session.expires_at) ?? opened + HOUR_MS;
  const [options] = useState(() => [1, 4, 8].map((hours): [number, string] => [opened + hours * HOUR_MS, `For ${hours} h`]).filter(([at]) => at < end - MARGIN_MS).concat([[end, "Until it ends"]]));
  const [at, setAt] = useState(options[0]?.[0] ?? end);
  return (
    <Confirm
      title="Keep awake"
      action="Keep awake"
      onClose={props.onClose}
      onConfirm={async () => {
        props.onChanged(await api.post<Session>(`sessions/${session.id}:keepAlive`, { until: at === end ? session.expires_at : new Date(at).toISOString() }));
        notify("done", `The idle timeouts are paused until ${day(at)}.`);
      }}
    >
      <p>While it is kept awake, the session neither becomes idle nor is closed because it is unused. Use this for work without open calls, such as structured streaming.</p>
      <TimeChoice legend="Keep awake" options={options} value={at} onValue={setAt} />
    </Confirm>
  );
}

export function EditDialog(props: Props & { etag: string | null }) {
  const { session } = props;
  // Of the state that the user saw: a change by somebody else meanwhile is not overwritten.
  const [etag] = useState(props.etag);
  const [name, setName] = useState(session.name);
  const [labels, setLabels] = useState(() => Object.entries(session.labels).sort(([a], [b]) => a.localeCompare(b)));
  return (
    <Confirm
      title="Edit name and labels"
      action="Save"
      onClose={props.onClose}
      onConfirm={async () => {
        const headers: Record<string, string> = etag ? { "if-match": etag } : {};
        const { data } = await api.send<Session>("PATCH", `sessions/${session.id}`, { body: { name: name.trim(), labels: { labels: labelMap(labels) } }, headers });
        props.onChanged(data);
        notify("done", "The changes are saved.");
      }}
    >
      <TextField label="Name" name="name" optional value={name} maxLength={128} autofocus onValue={setName} />
      <PairsField legend="Labels" noun="label" optional value={labels} max={32} onValue={setLabels} />
    </Confirm>
  );
}
