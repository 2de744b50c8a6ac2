// The running operations, with Interrupt.
import { useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Operation, Session } from "../api/types.ts";
import { full, millis, plural, span } from "../format.ts";
import { useNow } from "../state/clock.ts";
import { errorText, notify } from "../state/notices.ts";
import { Button, Card, Table } from "../ui/basics.tsx";
import type { SessionAccess } from "./use_session.ts";

export function Operations(props: { access: SessionAccess; session: Session }) {
  const { access, session } = props;
  const now = useNow();
  const [busy, setBusy] = useState("");
  const { operations } = access;

  const interrupt = async (ids: string[]) => {
    setBusy(ids[0] ?? "all");
    try {
      const reply = await api.post<{ interrupted_operation_ids: string[] }>(`sessions/${session.id}/operations:interrupt`, { operation_ids: ids });
      const count = reply.interrupted_operation_ids.length;
      notify("done", count > 0 ? `${plural(count, "operation")} interrupted.` : "Nothing was running any more.");
      await access.reloadOperations();
    } catch (error) {
      notify("error", errorText(error));
    } finally {
      setBusy("");
    }
  };
  return (
    <Card
      title="Running operations"
      actions={
        operations.length > 1 ? (
          <Button small icon="stop" busy={busy === "all"} onClick={() => interrupt([])}>
            Interrupt all
          </Button>
        ) : null
      }
    >
      {operations.length === 0 ? (
        <p class="muted quiet-text">{session.status === "active" ? "Nothing is running. Queries appear here while they run." : "Nothing can run while there is no compute."}</p>
      ) : (
        <Table
          label="Running operations"
          head={
            <>
              <th scope="col">Operation</th>
              <th scope="col">Running for</th>
              <th scope="col">
                <span class="offscreen">Actions</span>
              </th>
            </>
          }
        >
          {operations.map((operation) => (
            <Row key={operation.operation_id} operation={operation} now={now} busy={busy === operation.operation_id} onInterrupt={() => interrupt([operation.operation_id])} />
          ))}
        </Table>
      )}
    </Card>
  );
}

function Row(props: { operation: Operation; now: number; busy: boolean; onInterrupt: () => void }) {
  const { operation } = props;
  const started = millis(operation.started_at);
  return (
    <tr>
      <td>
        <div>{methodName(operation.method)}</div>
        <div class="muted mono small">{operation.operation_id}</div>
      </td>
      <td title={full(operation.started_at)} class="nowrap">
        {started === null ? "–" : span((props.now - started) / 1000)}
      </td>
      <td class="row-actions">
        <Button small icon="stop" busy={props.busy} label={`Interrupt operation ${operation.operation_id}`} onClick={props.onInterrupt}>
          Interrupt
        </Button>
      </td>
    </tr>
  );
}

function methodName(method: string): string {
  const short = method.slice(method.lastIndexOf("/") + 1);
  return { ExecutePlan: "Query", ReattachExecute: "Query (reattached)" }[short] ?? short;
}
