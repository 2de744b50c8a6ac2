// Organization: limits, principals, disable.
import { useEffect, useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Limits, Org } from "../api/types.ts";
import { count, plural } from "../format.ts";
import { isOrgAdmin, isPlatformAdmin, principal } from "../state/auth.ts";
import { liveSessions, shareLiveStream } from "../state/live_sessions.ts";
import { useLoad } from "../state/load.ts";
import { notify } from "../state/notices.ts";
import { useStore } from "../state/store.ts";
import { Banner, Button, Card, Empty, Failure, Link, Loading, PageHeading } from "../ui/basics.tsx";
import { Confirm } from "../ui/dialog.tsx";
import { TextField } from "../ui/form.tsx";
import { Principals } from "./principals.tsx";

export function OrganizationPage(props: { name: string | undefined }) {
  const name = props.name ?? principal().organization ?? "";
  const [orgs] = useLoad("orgs", async (signal) => (await api.get<{ orgs: Org[] }>("orgs", { signal })).orgs);
  const path = `orgs/${encodeURIComponent(name)}`;
  const [loaded, reload] = useLoad(path, (signal) => api.get<Org>(path, { signal }));
  const [open, setOpen] = useState<"limits" | "switch" | null>(null);
  const org = loaded.state === "ready" ? loaded.data : null;
  const others = orgs.state === "ready" ? orgs.data.filter((each) => each.name !== name) : [];
  return (
    <>
      <PageHeading title={org ? `Organization ${org.name}` : "Organization"}>
        {org && isPlatformAdmin() ? (
          <Button kind={org.disabled ? "plain" : "danger"} onClick={() => setOpen("switch")}>
            {org.disabled ? "Enable organization" : "Disable organization"}
          </Button>
        ) : null}
      </PageHeading>
      {name === "" ? <Empty icon="org" title="No organization">Your account belongs to no organization. Ask your platform team.</Empty> : null}
      {name !== "" && loaded.state === "loading" ? <Loading what="the organization" /> : null}
      {name !== "" && loaded.state === "error" ? <Failure error={loaded.error} what="this organization" retry={reload} /> : null}
      {org ? (
        <>
          {org.disabled ? <Banner kind="error" title="This organization is disabled">All its sessions were closed, and calls of its principals are rejected.</Banner> : null}
          <LimitsCard org={org} onEdit={() => setOpen("limits")} />
          {isOrgAdmin() ? <Principals org={org} onChanged={reload} /> : null}
        </>
      ) : null}
      {others.length > 0 ? (
        <Card title="Other organizations">
          <ul class="plain-list">
            {others.map((each) => (
              <li key={each.name}>
                <Link to={`organization/${encodeURIComponent(each.name)}`}>{each.name}</Link>
                {each.disabled ? <span class="muted"> disabled</span> : null}
              </li>
            ))}
          </ul>
        </Card>
      ) : null}
      {org && open === "limits" ? <LimitsDialog org={org} onClose={() => setOpen(null)} onDone={reload} /> : null}
      {org && open === "switch" ? <SwitchDialog org={org} onClose={() => setOpen(null)} onDone={reload} /> : null}
    </>
  );
}

const LIMITS: [field: keyof Limits, name: string, max: number][] = [
  ["live_sessions", "Live sessions", 1_000_000],
  ["live_sessions_per_owner", "Live sessions of one owner", 100_000],
  ["creates_per_minute", "Creates of one owner per minute", 10_000],
  ["tokens_per_session", "Valid tokens of one session", 1000],
  ["labels", "Labels of one session", 64],
];

function LimitsCard(props: { org: Org; onEdit: () => void }) {
  const { org } = props;
  useEffect(() => shareLiveStream(), []);
  const seen = useStore(liveSessions).sessions.filter((session) => session.org === org.name).length;
  const limits = org.limits;
  return (
    <Card
      title="Limits"
      hint={org.managed_by_config ? "From the configuration of session-manager; change them there." : undefined}
      actions={
        isPlatformAdmin() && !org.managed_by_config ? (
          <Button small icon="edit" label="Edit limits" onClick={props.onEdit}>
            Edit
          </Button>
        ) : null
      }
    >
      {limits ? (
        <ul class="limits">
          {LIMITS.map(([field, name]) => (
            <li key={field}>
              <div class="limit-line">
                <span>{name}</span>
                <span class="limit-value">{field === "live_sessions" && isOrgAdmin() ? `${count(seen)} of ${count(limits[field])}` : count(limits[field])}</span>
              </div>
              {field === "live_sessions" && isOrgAdmin() ? <meter min={0} max={limits[field]} value={Math.min(seen, limits[field])} high={limits[field] * 0.85} aria-label="Live sessions in use" /> : null}
            </li>
          ))}
        </ul>
      ) : (
        <p class="muted">The default limits apply.</p>
      )}
    </Card>
  );
}

function LimitsDialog(props: { org: Org; onClose: () => void; onDone: () => void }) {
  const [values, setValues] = useState(() => Object.fromEntries(LIMITS.map(([field]) => [field, String(props.org.limits?.[field] ?? "")])));
  return (
    <Confirm
      title="Edit limits"
      action="Save limits"
      onClose={props.onClose}
      onConfirm={async () => {
        const limits = Object.fromEntries(LIMITS.map(([field]) => [field, Number(values[field])]));
        await api.send("PUT", `orgs/${encodeURIComponent(props.org.name)}/limits`, { body: limits });
        notify("done", "The limits are saved.");
        props.onDone();
      }}
    >
      <p>Live sessions above a lower limit continue.</p>
      {LIMITS.map(([field, name, max]) => (
        <TextField key={field} label={name} name={field} type="number" min={1} max={max} required value={values[field] ?? ""} onValue={(value) => setValues((old) => ({ ...old, [field]: value }))} />
      ))}
    </Confirm>
  );
}

function SwitchDialog(props: { org: Org; onClose: () => void; onDone: () => void }) {
  const { org } = props;
  const words = org.disabled
    ? { title: "Enable organization", text: "Its principals can create and use sessions again. Closed sessions stay closed." }
    : { title: "Disable organization", text: "All its sessions are closed at once, and every call of its principals is rejected until it is enabled again." };
  return (
    <Confirm
      title={words.title}
      action={words.title}
      danger={!org.disabled}
      typed={org.disabled ? "" : org.name}
      onClose={props.onClose}
      onConfirm={async () => {
        const reply = await api.post<{ closed_sessions?: number }>(`orgs/${encodeURIComponent(org.name)}:${org.disabled ? "enable" : "disable"}`);
        notify("done", org.disabled ? "The organization is enabled." : `The organization is disabled; ${plural(reply?.closed_sessions ?? 0, "session")} closed.`);
        props.onDone();
      }}
    >
      <p>{words.text}</p>
    </Confirm>
  );
}
