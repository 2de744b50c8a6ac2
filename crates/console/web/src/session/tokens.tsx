// The tokens of a session: when each was issued, used and expires. Never a token itself.
import { useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Session, SessionToken } from "../api/types.ts";
import { full, millis, person, relative } from "../format.ts";
import { useNow } from "../state/clock.ts";
import { isLive } from "../state/live_sessions.ts";
import { useLoad } from "../state/load.ts";
import { errorText, notify } from "../state/notices.ts";
import { Button, Card } from "../ui/basics.tsx";
import { Confirm } from "../ui/dialog.tsx";

const RECENT = 5;

export function Tokens(props: { session: Session; round: number; onToken: () => void }) {
  const { session } = props;
  const [tokens, reload] = useLoad(`${session.id} ${props.round} ${session.token_epoch} ${session.reason === "TOKENS_REVOKED" ? session.version : 0}`, async (signal) => {
    const reply = await api.get<{ tokens: SessionToken[] }>(`sessions/${session.id}/tokens`, { signal });
    return reply.tokens;
  });
  const [revoking, setRevoking] = useState<SessionToken | "all" | null>(null);
  const [all, setAll] = useState(false);
  const now = useNow(15_000);
  const list = tokens.state === "ready" ? newest(tokens.data) : [];
  const valid = list.filter((token) => isValid(token, now));
  return (
    <Card
      title="Tokens"
      actions={
        isLive(session) && valid.length > 1 ? (
          <Button small onClick={() => setRevoking("all")}>
            Revoke all
          </Button>
        ) : null
      }
    >
      {tokens.state === "loading" ? <p class="muted quiet-text">Loading…</p> : null}
      {tokens.state === "error" ? <p class="muted quiet-text">{errorText(tokens.error)}</p> : null}
      {tokens.state === "ready" && list.length === 0 ? (
        <div class="quiet-text">
          <p class="muted">No token yet. A client needs one to connect.</p>
          {isLive(session) ? (
            <Button small icon="key" label="Generate token for a client" onClick={props.onToken}>
              Generate token
            </Button>
          ) : null}
        </div>
      ) : null}
      <ul class="token-list">
        {(all ? list : list.slice(0, RECENT)).map((token) => (
          <Token key={token.token_id} token={token} now={now} onRevoke={isLive(session) ? () => setRevoking(token) : null} />
        ))}
      </ul>
      {list.length > RECENT && !all ? <Button small onClick={() => setAll(true)}>Show all {list.length} tokens</Button> : null}
      {revoking ? <RevokeDialog session={session} token={revoking} onClose={() => setRevoking(null)} onDone={reload} /> : null}
    </Card>
  );
}

function newest(tokens: SessionToken[]): SessionToken[] {
  return [...tokens].sort((a, b) => (b.issued_at ?? "").localeCompare(a.issued_at ?? ""));
}

function isValid(token: SessionToken, now: number): boolean {
  return !token.revoked && (millis(token.expires_at) ?? 0) > now;
}

function Token(props: { token: SessionToken; now: number; onRevoke: (() => void) | null }) {
  const { token, now } = props;
  const valid = isValid(token, now);
  const state = token.revoked ? "Revoked" : valid ? `Valid, expires ${relative(token.expires_at, now)}` : `Expired ${relative(token.expires_at, now)}`;
  return (
    <li>
      <div>
        <div class={valid ? "" : "muted"}>{state}</div>
        <div class="muted small" title={`Issued ${full(token.issued_at)} to ${token.subject}`}>
          Issued {relative(token.issued_at, now)} to {person(token.subject)}, {token.last_used_at ? `used ${relative(token.last_used_at, now)}` : token.first_used_at ? `used ${relative(token.first_used_at, now)}` : "not used yet"}
        </div>
        <div class="muted mono small token-id">{token.token_id}</div>
      </div>
      {valid && props.onRevoke ? (
        <Button small label={`Revoke token ${token.token_id}`} onClick={props.onRevoke}>
          Revoke
        </Button>
      ) : null}
    </li>
  );
}

function RevokeDialog(props: { session: Session; token: SessionToken | "all"; onClose: () => void; onDone: () => void }) {
  const { session, token } = props;
  const all = token === "all";
  return (
    <Confirm
      title={all ? "Revoke all tokens" : "Revoke token"}
      action={all ? "Revoke all tokens" : "Revoke token"}
      danger
      onClose={props.onClose}
      onConfirm={async () => {
        if (all) await api.post(`sessions/${session.id}/tokens:revokeAll`);
        else await api.send("DELETE", `sessions/${session.id}/tokens/${encodeURIComponent(token.token_id)}`);
        notify("done", all ? "All tokens are revoked." : "The token is revoked.");
        props.onDone();
      }}
    >
      <p>{all ? "Every client of this session is disconnected within 5 seconds, and its running queries end." : "Clients with this token are disconnected within 5 seconds, and their running queries end."} Generate a new token to connect again.</p>
    </Confirm>
  );
}
