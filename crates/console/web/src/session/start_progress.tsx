// The phases of a start, from the events of the session: a reload shows the same.
import type { Session, SessionEvent } from "../api/types.ts";
import { clock, millis, seconds, shortSpan, span } from "../format.ts";
import { useNow } from "../state/clock.ts";
import { Icon } from "../ui/icon.tsx";
import { phaseName } from "../words.ts";

interface Step {
  name: string;
  state: "done" | "now" | "later" | "failed";
  detail: string;
}

export function StartProgress(props: { session: Session; events: SessionEvent[] }) {
  const { session, events } = props;
  if (session.status === "failed" && session.active_at === null) return <Steps session={session} events={events} />;
  return session.status === "pending" ? <Steps session={session} events={events} /> : null;
}

function Steps(props: { session: Session; events: SessionEvent[] }) {
  const { session } = props;
  const now = useNow();
  const begun = startOf(session, props.events);
  const end = session.status === "failed" ? (millis(session.closed_at) ?? now) : now;
  const limit = seconds(session.policy?.provisioning_deadline);
  const steps = stepsOf(session, props.events);
  return (
    <section class="start" aria-labelledby="start-title">
      <div class="card-head">
        <h2 id="start-title">{session.status === "failed" ? "The start failed" : phaseName(session.phase)}</h2>
        <span class="muted" role="timer" aria-live="off">
          {begun === null ? "" : `${shortSpan(Math.max(0, (end - begun) / 1000))}${limit === null ? "" : ` of at most ${span(limit)}`}`}
        </span>
      </div>
      <ol class="steps" aria-live="polite">
        {steps.map((step) => (
          <li key={step.name} class={step.state} aria-current={step.state === "now" ? "step" : undefined}>
            <span class="step-mark" aria-hidden="true">
              {step.state === "now" ? <span class="spinner" /> : <Icon name={step.state === "done" ? "check" : step.state === "failed" ? "warning" : "circle"} size={14} />}
            </span>
            <div>
              <div class="step-name">{step.name}</div>
              {step.detail ? <div class="muted small message">{step.detail}</div> : null}
            </div>
          </li>
        ))}
      </ol>
    </section>
  );
}

/** The event with which the present compute began to start. */
function beginning(session: Session, events: SessionEvent[]): SessionEvent | undefined {
  return events.find((event) => event.generation === session.generation && event.to === "pending") ?? events.findLast((event) => event.to === "pending" && event.from !== "pending");
}

function startOf(session: Session, events: SessionEvent[]): number | null {
  return millis(beginning(session, events)?.at) ?? millis(session.created_at);
}

function stepsOf(session: Session, events: SessionEvent[]): Step[] {
  const first = beginning(session, events);
  const failed = session.status === "failed";
  const waiting = events.findLast((event) => event.reason === "COMPUTE_WAITING" && event.generation === session.generation);
  const requested: Record<string, string> = { warming: "Wake-up requested", restarting: "Compute lost" };
  const detail = failed ? session.status_message : waiting ? waiting.message : `on cluster ${session.cluster}`;
  return [
    { name: requested[session.phase] ?? "Requested", state: "done", detail: clock(first?.at ?? session.created_at) },
    { name: "Compute starts", state: failed ? "failed" : "now", detail },
    { name: session.catalog ? `Test query on catalog ${session.catalog}` : "Test query", state: "later", detail: "" },
    { name: "Ready", state: "later", detail: "" },
  ];
}
