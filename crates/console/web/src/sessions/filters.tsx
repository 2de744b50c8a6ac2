// The filters above the list; their values are in the address of the page.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Session } from "../api/types.ts";
import { setQuery } from "../state/router.ts";
import { Icon } from "../ui/icon.tsx";
import type { Filter } from "./filter.ts";

const STATUSES: [value: string, name: string][] = [
  ["", "Live"],
  ["active", "Active"],
  ["pending", "Starting"],
  ["idle", "Idle"],
  ["ended", "Ended"],
];

const TYPING_MS = 150;

export function Filters(props: { filter: Filter; sessions: readonly Session[] }) {
  const { filter } = props;
  const clusters = useMemo(() => {
    const names = new Set(props.sessions.map((session) => session.cluster));
    if (filter.cluster !== "") names.add(filter.cluster);
    return [...names].sort();
  }, [props.sessions, filter.cluster]);
  const status = filter.status === "live" ? "" : filter.status;
  return (
    <form class="filters" role="search" aria-label="Filter sessions" onSubmit={(event) => event.preventDefault()}>
      <fieldset class="segments">
        <legend class="offscreen">Status</legend>
        {STATUSES.map(([value, name]) => (
          <label key={value}>
            <input type="radio" name="status" value={value} checked={status === value} onChange={() => setQuery({ status: value })} />
            <span>{name}</span>
          </label>
        ))}
      </fieldset>
      <Search text={filter.text} />
      <label class="compact">
        <span>Cluster</span>
        <select value={filter.cluster} onChange={(event) => setQuery({ cluster: event.currentTarget.value })}>
          <option value="" selected={filter.cluster === ""}>
            All
          </option>
          {clusters.map((name) => (
            <option key={name} value={name} selected={name === filter.cluster}>
              {name}
            </option>
          ))}
        </select>
      </label>
      <label class="check">
        <input type="checkbox" checked={filter.owner === "me"} onChange={(event) => setQuery({ owner: event.currentTarget.checked ? "me" : "" })} />
        <span>Only mine</span>
      </label>
    </form>
  );
}

function Search(props: { text: string }) {
  const [text, setText] = useState(props.text);
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  useEffect(() => {
    // "Clear filters" empties the address; the field follows.
    if (props.text === "") setText("");
  }, [props.text]);
  useEffect(() => () => clearTimeout(timer.current), []);
  return (
    <div class="search">
      <Icon name="search" />
      <input
        type="search"
        aria-label="Search name, id, owner, catalog or label"
        placeholder="Name, id, owner, label"
        value={text}
        spellcheck={false}
        onInput={(event) => {
          const value = event.currentTarget.value;
          setText(value);
          clearTimeout(timer.current);
          timer.current = setTimeout(() => setQuery({ q: value }), TYPING_MS);
        }}
      />
    </div>
  );
}
