// Fields of forms: each has a label, an optional hint and its own error.
import { useId } from "preact/hooks";
import type { ComponentChildren } from "preact";
import { Button } from "./basics.tsx";

interface FieldProps {
  label: string;
  name: string;
  hint?: ComponentChildren;
  error?: string | undefined;
  optional?: boolean;
}

function Frame(props: FieldProps & { id: string; children: ComponentChildren }) {
  return (
    <div class={`field${props.error ? " invalid" : ""}`}>
      <label for={props.id}>
        {props.label}
        {props.optional ? <span class="muted"> (optional)</span> : null}
      </label>
      {props.children}
      {props.hint ? (
        <p class="hint" id={`${props.id}-hint`}>
          {props.hint}
        </p>
      ) : null}
      {props.error ? (
        <p class="field-error" id={`${props.id}-error`}>
          {props.error}
        </p>
      ) : null}
    </div>
  );
}

function describedBy(id: string, props: FieldProps): string | undefined {
  const ids = [props.hint ? `${id}-hint` : "", props.error ? `${id}-error` : ""].filter(Boolean).join(" ");
  return ids || undefined;
}

export interface TextFieldProps extends FieldProps {
  value: string;
  onValue: (value: string) => void;
  type?: "text" | "password" | "number";
  placeholder?: string;
  maxLength?: number;
  min?: number;
  max?: number;
  required?: boolean;
  autofocus?: boolean;
  mono?: boolean;
}

export function TextField(props: TextFieldProps) {
  const id = useId();
  return (
    <Frame {...props} id={id}>
      <input
        id={id}
        name={props.name}
        class={props.mono ? "mono" : undefined}
        type={(props.type ?? "text") as "text"}
        value={props.value}
        placeholder={props.placeholder}
        maxLength={props.maxLength}
        min={props.min}
        max={props.max}
        required={props.required}
        autofocus={props.autofocus}
        autocomplete="off"
        spellcheck={false}
        aria-invalid={props.error ? "true" : undefined}
        aria-describedby={describedBy(id, props)}
        onInput={(event) => props.onValue(event.currentTarget.value)}
      />
    </Frame>
  );
}

export interface SelectFieldProps extends FieldProps {
  value: string;
  onValue: (value: string) => void;
  options: [value: string, text: string, disabled?: boolean][];
}

export function SelectField(props: SelectFieldProps) {
  const id = useId();
  return (
    <Frame {...props} id={id}>
      <select
        id={id}
        name={props.name}
        value={props.value}
        aria-invalid={props.error ? "true" : undefined}
        aria-describedby={describedBy(id, props)}
        onChange={(event) => props.onValue(event.currentTarget.value)}
      >
        {props.options.map(([value, text, disabled]) => (
          <option key={value} value={value} disabled={disabled} selected={value === props.value}>
            {text}
          </option>
        ))}
      </select>
    </Frame>
  );
}

export interface DurationFieldProps extends FieldProps {
  /** Seconds; empty means the default. */
  value: string;
  onValue: (seconds: string) => void;
  /** What applies if nothing is chosen. */
  standard: string;
  presets: [seconds: number, text: string][];
}

/** A choice of common durations, or minutes of one's own. */
export function DurationField(props: DurationFieldProps) {
  const id = useId();
  const custom = props.value !== "" && !props.presets.some(([s]) => String(s) === props.value);
  return (
    <Frame {...props} id={id}>
      <div class="joined">
        <select
          id={id}
          name={props.name}
          aria-invalid={props.error ? "true" : undefined}
          aria-describedby={describedBy(id, props)}
          onChange={(event) => {
            const chosen = event.currentTarget.value;
            props.onValue(chosen === "custom" ? "5400" : chosen);
          }}
        >
          <option value="" selected={props.value === ""}>
            {props.standard}
          </option>
          {props.presets.map(([s, text]) => (
            <option key={s} value={String(s)} selected={props.value === String(s)}>
              {text}
            </option>
          ))}
          <option value="custom" selected={custom}>
            Other…
          </option>
        </select>
        {custom ? (
          <input
            type="number"
            min={0}
            step={1}
            value={Math.round(Number(props.value) / 60)}
            aria-label={`${props.label} in minutes`}
            onInput={(event) => props.onValue(String(Math.max(0, Number(event.currentTarget.value)) * 60))}
          />
        ) : null}
        {custom ? <span class="unit">min</span> : null}
      </div>
    </Frame>
  );
}

export type Pairs = [name: string, value: string][];

export interface PairsFieldProps {
  legend: string;
  /** What one pair is called: "label". */
  noun: string;
  value: Pairs;
  onValue: (pairs: Pairs) => void;
  hint?: ComponentChildren;
  error?: string | undefined;
  optional?: boolean;
  max: number;
}

/** Names and values that the user writes. */
export function PairsField(props: PairsFieldProps) {
  const { noun } = props;
  const id = useId();
  const change = (index: number, part: 0 | 1, text: string) =>
    props.onValue(props.value.map((pair, i) => (i === index ? ((part === 0 ? [text, pair[1]] : [pair[0], text]) as [string, string]) : pair)));
  return (
    <fieldset class={`labels${props.error ? " invalid" : ""}`} aria-describedby={describedBy(id, { label: props.legend, name: noun, hint: props.hint, error: props.error })}>
      <legend>
        {props.legend}
        {props.optional ? <span class="muted"> (optional)</span> : null}
      </legend>
      {props.hint ? (
        <p class="hint" id={`${id}-hint`}>
          {props.hint}
        </p>
      ) : null}
      {props.value.map(([name, value], index) => (
        <div class="label-row" key={index}>
          <input aria-label={`Name of ${noun} ${index + 1}`} placeholder="name" value={name} autocomplete="off" spellcheck={false} onInput={(event) => change(index, 0, event.currentTarget.value)} />
          <input aria-label={`Value of ${noun} ${index + 1}`} placeholder="value" value={value} autocomplete="off" spellcheck={false} onInput={(event) => change(index, 1, event.currentTarget.value)} />
          <Button kind="quiet" icon="close" label={`Remove ${noun} ${index + 1}`} title="Remove" onClick={() => props.onValue(props.value.filter((_, i) => i !== index))} />
        </div>
      ))}
      {props.error ? (
        <p class="field-error" id={`${id}-error`}>
          {props.error}
        </p>
      ) : null}
      <Button small icon="plus" disabled={props.value.length >= props.max} onClick={() => props.onValue([...props.value, ["", ""]])}>
        Add {noun}
      </Button>
    </fieldset>
  );
}

export interface TextAreaFieldProps extends FieldProps {
  value: string;
  onValue: (value: string) => void;
  rows?: number;
  placeholder?: string;
}

/** A text of several lines. */
export function TextAreaField(props: TextAreaFieldProps) {
  const id = useId();
  return (
    <Frame {...props} id={id}>
      <textarea
        id={id}
        name={props.name}
        class="mono"
        rows={props.rows ?? 6}
        value={props.value}
        placeholder={props.placeholder}
        spellcheck={false}
        aria-invalid={props.error ? "true" : undefined}
        aria-describedby={describedBy(id, props)}
        onInput={(event) => props.onValue(event.currentTarget.value)}
      />
    </Frame>
  );
}

/** A choice between yes and no. */
export function CheckField(props: FieldProps & { value: boolean; onValue: (value: boolean) => void }) {
  const id = useId();
  return (
    <div class={`field${props.error ? " invalid" : ""}`}>
      <label class="check">
        <input type="checkbox" name={props.name} checked={props.value} aria-describedby={describedBy(id, props)} onChange={(event) => props.onValue(event.currentTarget.checked)} />
        {props.label}
      </label>
      {props.hint ? (
        <p class="hint" id={`${id}-hint`}>
          {props.hint}
        </p>
      ) : null}
      {props.error ? (
        <p class="field-error" id={`${id}-error`}>
          {props.error}
        </p>
      ) : null}
    </div>
  );
}

/** The labels that have a name. */
export function labelMap(labels: [string, string][]): Record<string, string> {
  return Object.fromEntries(labels.filter(([name]) => name.trim() !== "").map(([name, value]) => [name.trim(), value]));
}
