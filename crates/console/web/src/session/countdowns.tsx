// The three times at which something happens by itself.
import type { ComponentChildren } from "preact";
import type { Session } from "../api/types.ts";
import { day, millis, span } from "../format.ts";
import { useNow } from "../state/clock.ts";
import { Button } from "../ui/basics.tsx";
import type { Open } from "./page.tsx";

/** Closer than this is marked as urgent. */
const SOON_SECONDS = 300;

export function Countdowns(props: { session: Session; onOpen: (open: Open) => void }) {
  const { session, onOpen } = props;
  const now = useNow();
  const kept = millis(session.keep_alive_until);
  const isKept = kept !== null && kept > now;
  const until = isKept ? `Kept awake until ${day(kept)}` : null;
  return (
    <section class="countdowns" aria-label="Times">
      <Countdown
        title="Becomes idle"
        at={session.status === "active" && !isKept ? session.idle_at : null}
        now={now}
        instead={until ?? (session.status === "idle" ? "Idle now" : session.status === "pending" ? "Not while it starts" : "In use")}
        hint="without further calls; the next query wakes it"
      >
        <Button small label="Keep awake: pause the idle timeout" onClick={() => onOpen("keep")}>
          Keep awake
        </Button>
      </Countdown>
      <Countdown title="Closes when unused" at={isKept ? null : session.closes_at} now={now} instead={until ?? (session.status === "pending" ? "Not while it starts" : "Not while in use")} hint="without further calls; a closed session is gone">
        <Button small label="Keep awake: pause closing when unused" onClick={() => onOpen("keep")}>
          Keep awake
        </Button>
      </Countdown>
      <Countdown title="Ends at the latest" at={session.expires_at} now={now} instead="–" hint="even while it is in use">
        <Button small onClick={() => onOpen("extend")}>
          Extend
        </Button>
      </Countdown>
    </section>
  );
}

function Countdown(props: { title: string; at: string | null; now: number; instead: string; hint: string; children: ComponentChildren }) {
  const at = millis(props.at);
  const left = at === null ? null : (at - props.now) / 1000;
  return (
    <div class={`countdown${left !== null && left < SOON_SECONDS ? " soon" : ""}`}>
      <h2>{props.title}</h2>
      <p class="left" role="timer" aria-live="off">
        {left === null ? props.instead : left <= 0 ? "now" : `in ${span(left)}`}
      </p>
      <p class="muted small">{at === null ? props.hint : `${day(at)}, ${props.hint}`}</p>
      {props.children}
    </div>
  );
}
