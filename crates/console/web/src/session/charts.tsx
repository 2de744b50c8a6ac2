// Activity and throughput since the page was opened: the API has totals, and the
// page reads them every few seconds.
import { useEffect, useRef, useState } from "preact/hooks";
import type { Session } from "../api/types.ts";
import { bytes, count } from "../format.ts";
import { isLive } from "../state/live_sessions.ts";
import { Card } from "../ui/basics.tsx";
import type { Chart, Series } from "./chart_view.ts";
import { rates, type Sample } from "./rates.ts";

export function Charts(props: { session: Session; samples: Sample[] }) {
  if (!isLive(props.session)) return null;
  const data = rates(props.samples);
  const last = data.at.length - 1;
  const now = { operations: data.operations[last] ?? props.session.active_operations, calls: data.calls[last] ?? 0, received: data.received[last] ?? 0, sent: data.sent[last] ?? 0 };
  return (
    <Card title="Activity" hint="Since you opened this page; proxies report every 5 seconds.">
      {data.at.length < 2 ? (
        <p class="muted quiet-text">Measuring…</p>
      ) : (
        <div class="charts">
          <Plot
            title="Calls"
            summary={`${count(now.operations)} in flight, ${now.calls.toFixed(1)} per second`}
            at={data.at}
            unit={(value) => (value >= 10 ? String(Math.round(value)) : String(Math.round(value * 10) / 10))}
            series={[
              { name: "in flight", color: "--chart-1", values: data.operations, steps: true },
              { name: "per second", color: "--chart-2", values: data.calls },
            ]}
          />
          <Plot
            title="Throughput"
            summary={`${bytes(now.received)}/s received, ${bytes(now.sent)}/s sent`}
            at={data.at}
            unit={(value) => `${bytes(value)}/s`}
            series={[
              { name: "received", color: "--chart-1", values: data.received },
              { name: "sent", color: "--chart-2", values: data.sent },
            ]}
          />
        </div>
      )}
    </Card>
  );
}

function Plot(props: { title: string; summary: string; at: number[]; unit: (value: number) => string; series: Series[] }) {
  const place = useRef<HTMLDivElement>(null);
  const chart = useRef<Chart | null>(null);
  const [failed, setFailed] = useState(false);
  const { at, series, unit } = props;
  useEffect(() => {
    let gone = false;
    import("./chart_view.ts").then(
      ({ draw }) => {
        if (!gone && place.current) chart.current = draw(place.current, at, series, unit);
      },
      () => setFailed(true),
    );
    return () => {
      gone = true;
      chart.current?.destroy();
    };
  }, []);
  useEffect(() => chart.current?.update(at, series), [at[at.length - 1]]);
  return (
    <figure>
      <figcaption>
        <strong>{props.title}</strong> <span class="muted">{props.summary}</span>
        <span class="legend" aria-hidden="true">
          {series.map((each, i) => (
            <span key={each.name} class={`legend-${i + 1}`}>
              {each.name}
            </span>
          ))}
        </span>
      </figcaption>
      {failed ? <p class="muted">The chart could not be loaded.</p> : <div class="plot" role="img" aria-label={`${props.title}: ${props.summary}`} ref={place} />}
    </figure>
  );
}
