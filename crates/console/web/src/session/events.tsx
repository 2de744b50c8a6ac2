// The phase log.
import type { SessionEvent } from "../api/types.ts";
import { clock, full, person } from "../format.ts";
import { isOrgAdmin } from "../state/auth.ts";
import { Card, Link, Loading, Table } from "../ui/basics.tsx";
import { StatusBadge } from "../ui/status.tsx";
import { eventText, phaseName, reasonName } from "../words.ts";

export function Events(props: { session: string; events: SessionEvent[] }) {
  const newestFirst = [...props.events].reverse();
  return (
    <Card
      title="Events"
      hint="The last 50 changes, newest first."
      actions={
        isOrgAdmin() ? (
          <Link class="button plain small" to={`audit?session=${props.session}`}>
            Audit trail
          </Link>
        ) : null
      }
    >
      {newestFirst.length === 0 ? (
        <Loading what="events" />
      ) : (
        <Table
          label="Events"
          head={
            <>
              <th scope="col">Time</th>
              <th scope="col">Status</th>
              <th scope="col">What happened</th>
              <th scope="col">By</th>
            </>
          }
        >
          {newestFirst.map((event) => (
            <tr key={`${event.version} ${event.at} ${event.reason}`}>
              <td title={full(event.at)} class="nowrap">
                {clock(event.at)}
              </td>
              <td>
                <StatusBadge status={event.to} />
                <div class="muted small">{phaseName(event.phase)}</div>
              </td>
              <td>
                {reasonName(event.reason)}
                {event.message && event.message !== reasonName(event.reason) ? <div class="muted small message">{eventText(event)}</div> : null}
              </td>
              <td title={event.actor} class="person">{person(event.actor)}</td>
            </tr>
          ))}
        </Table>
      )}
    </Card>
  );
}
