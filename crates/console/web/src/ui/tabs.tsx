// Tabs by the pattern of the ARIA guide: one stop of the Tab key, arrows between.
import type { ComponentChildren } from "preact";
import { useId, useRef } from "preact/hooks";

interface Props {
  label: string;
  tabs: [id: string, name: string][];
  chosen: string;
  onChoose: (id: string) => void;
  children: ComponentChildren;
}

export function Tabs(props: Props) {
  const base = useId();
  const list = useRef<HTMLDivElement>(null);
  const move = (event: KeyboardEvent) => {
    const at = props.tabs.findIndex(([id]) => id === props.chosen);
    const last = props.tabs.length - 1;
    const next = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at === 0 ? last : at - 1, Home: 0, End: last }[event.key];
    const tab = next === undefined ? undefined : props.tabs[next];
    if (next === undefined || !tab) return;
    event.preventDefault();
    props.onChoose(tab[0]);
    list.current?.querySelectorAll("button")[next]?.focus();
  };
  return (
    <div class="tabs">
      <div class="tab-list" role="tablist" aria-label={props.label} ref={list} onKeyDown={move}>
        {props.tabs.map(([id, name]) => (
          <button
            key={id}
            type="button"
            role="tab"
            id={`${base}-${id}`}
            aria-selected={id === props.chosen ? "true" : "false"}
            aria-controls={`${base}-panel`}
            tabIndex={id === props.chosen ? 0 : -1}
            onClick={() => props.onChoose(id)}
          >
            {name}
          </button>
        ))}
      </div>
      <div role="tabpanel" id={`${base}-panel`} aria-labelledby={`${base}-${props.chosen}`} class="tab-panel">
        {props.children}
      </div>
    </div>
  );
}
