// The principals of an organization that own sessions, and the disabled ones.
import { useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Org } from "../api/types.ts";
import { count, person, plural } from "../format.ts";
import { myId } from "../state/auth.ts";
import { liveSessions } from "../state/live_sessions.ts";
import { notify } from "../state/notices.ts";
import { useStore } from "../state/store.ts";
import { Button, Card, Table } from "../ui/basics.tsx";
import { Confirm } from "../ui/dialog.tsx";
import { TextField } from "../ui/form.tsx";

interface Switch {
  principal: string;
  disable: boolean;
}

export function Principals(props: { org: Org; onChanged: () => void }) {
  const { org } = props;
  const [open, setOpen] = useState<Switch | "other" | null>(null);
  const counts = new Map<string, number>();
  for (const session of useStore(liveSessions).sessions) {
    if (session.org === org.name) counts.set(session.owner, (counts.get(session.owner) ?? 0) + 1);
  }
  const disabled = new Set(org.disabled_principals);
  const names = [...new Set([...disabled, ...counts.keys()])].sort();
  return (
    <Card
      title="Principals"
      hint="Owners of live sessions, and disabled principals. Berth keeps no list of all accounts; those are with your identity provider."
      actions={
        <Button small onClick={() => setOpen("other")}>
          Disable another…
        </Button>
      }
    >
      {names.length === 0 ? (
        <p class="muted quiet-text">Nobody has a live session.</p>
      ) : (
        <Table
          label="Principals"
          head={
            <>
              <th scope="col">Principal</th>
              <th scope="col">Live sessions</th>
              <th scope="col">State</th>
              <th scope="col">
                <span class="offscreen">Actions</span>
              </th>
            </>
          }
        >
          {names.map((name) => (
            <tr key={name}>
              <td>
                {person(name)}
                <div class="muted mono small">{name}</div>
              </td>
              <td>{count(counts.get(name) ?? 0)}</td>
              <td>{disabled.has(name) ? "Disabled" : "Enabled"}</td>
              <td class="row-actions">
                {name === myId() ? (
                  <span class="muted">you</span>
                ) : (
                  <Button small label={`${disabled.has(name) ? "Enable" : "Disable"} principal ${name}`} onClick={() => setOpen({ principal: name, disable: !disabled.has(name) })}>
                    {disabled.has(name) ? "Enable" : "Disable"}
                  </Button>
                )}
              </td>
            </tr>
          ))}
        </Table>
      )}
      {open ? <SwitchDialog org={org} change={open === "other" ? { principal: "", disable: true } : open} onClose={() => setOpen(null)} onDone={props.onChanged} /> : null}
    </Card>
  );
}

function SwitchDialog(props: { org: Org; change: Switch; onClose: () => void; onDone: () => void }) {
  const { org, change } = props;
  const [name, setName] = useState(change.principal);
  const verb = change.disable ? "Disable" : "Enable";
  return (
    <Confirm
      title={`${verb} principal`}
      action={`${verb} principal`}
      danger={change.disable}
      onClose={props.onClose}
      onConfirm={async () => {
        const path = `principals/${encodeURIComponent(name.trim())}:disable`;
        const reply = await api.post<{ closed_sessions?: number }>(path, { disabled: change.disable, org: org.name });
        notify("done", change.disable ? `${person(name)} is disabled; ${plural(reply?.closed_sessions ?? 0, "session")} closed.` : `${person(name)} is enabled.`);
        props.onDone();
      }}
    >
      {change.principal === "" ? (
        <TextField label="Principal" name="principal" value={name} mono autofocus hint="As issuer-alias|subject, for example corp|ana@example.org" onValue={setName} />
      ) : (
        <p>
          <code>{name}</code>
        </p>
      )}
      <p>{change.disable ? "Its sessions are closed, the tokens that it issued for sessions of others are revoked, and its calls are rejected." : "It can use Berth again. Closed sessions stay closed."}</p>
    </Confirm>
  );
}
