// Building blocks of all pages.
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { ApiError } from "../api/client.ts";
import { announce, errorText } from "../state/notices.ts";
import { navigate } from "../state/router.ts";
import { Icon, type IconName } from "./icon.tsx";

/** A link to a page of the console; opens without a new load. */
export function Link(props: { to: string; class?: string; children: ComponentChildren; current?: boolean; label?: string }) {
  const open = (event: MouseEvent) => {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    navigate(props.to);
  };
  return (
    <a
      href={props.to}
      class={props.class}
      onClick={open}
      aria-current={props.current ? "page" : undefined}
      aria-label={props.label}
    >
      {props.children}
    </a>
  );
}

type ButtonKind = "primary" | "plain" | "danger" | "quiet";

export interface ButtonProps {
  kind?: ButtonKind;
  icon?: IconName;
  small?: boolean;
  busy?: boolean;
  disabled?: boolean;
  type?: "button" | "submit";
  /** Replaces the visible text for screen readers; must contain it. */
  label?: string;
  title?: string;
  autofocus?: boolean;
  onClick?: (event: MouseEvent) => void;
  children?: ComponentChildren;
}

export function Button(props: ButtonProps) {
  const { kind = "plain", icon, small, busy, disabled, type = "button", label, title, onClick, children } = props;
  return (
    <button
      type={type}
      class={`button ${kind}${small ? " small" : ""}${children ? "" : " only-icon"}`}
      aria-disabled={busy || disabled ? "true" : undefined}
      aria-busy={busy ? "true" : undefined}
      aria-label={label}
      title={title}
      autofocus={props.autofocus}
      onClick={(event) => {
        if (busy || disabled) event.preventDefault();
        else onClick?.(event);
      }}
    >
      {busy ? <span class="spinner" aria-hidden="true" /> : icon ? <Icon name={icon} /> : null}
      {children ? <span>{children}</span> : null}
    </button>
  );
}

/** The heading of a page: gets the focus when the page opens, and names the document. */
export function PageHeading(props: { title: string; children?: ComponentChildren; above?: ComponentChildren; below?: ComponentChildren }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = `${props.title} · Berth`;
  }, [props.title]);
  useEffect(() => {
    heading.current?.focus({ preventScroll: true });
    scrollTo(0, 0);
  }, []);
  return (
    <header class="page-head">
      <div class="page-title">
        {props.above}
        <h1 ref={heading} tabIndex={-1}>
          {props.title}
        </h1>
        {props.below}
      </div>
      {props.children ? <div class="actions">{props.children}</div> : null}
    </header>
  );
}

export function Card(props: { title?: string; id?: string; class?: string; actions?: ComponentChildren; hint?: ComponentChildren; children: ComponentChildren }) {
  const id = useId();
  return (
    <section class={`card ${props.class ?? ""}`} id={props.id} aria-labelledby={props.title ? id : undefined}>
      {props.title ? (
        <div class="card-head">
          <h2 id={id}>{props.title}</h2>
          {props.actions ? <div class="actions">{props.actions}</div> : null}
        </div>
      ) : null}
      {props.hint ? <p class="hint">{props.hint}</p> : null}
      {props.children}
    </section>
  );
}

/** A place without content that says what to do next. */
export function Empty(props: { icon?: IconName; title: string; children?: ComponentChildren; action?: ComponentChildren }) {
  return (
    <div class="empty">
      <Icon name={props.icon ?? "box"} size={28} />
      <p class="empty-title">{props.title}</p>
      {props.children ? <div class="empty-text">{props.children}</div> : null}
      {props.action}
    </div>
  );
}

export function Loading(props: { what: string }) {
  return (
    <div class="loading" role="status">
      <span class="spinner" aria-hidden="true" />
      Loading {props.what}…
    </div>
  );
}

/** An error in the place of content, with what to do. */
export function Failure(props: { error: unknown; what: string; retry?: () => void; back?: { to: string; text: string } }) {
  const error = props.error;
  const denied = error instanceof ApiError && (error.status === 403 || error.status === 404);
  return (
    <div class="empty" role="alert">
      <Icon name={denied ? "lock" : "warning"} size={28} />
      <p class="empty-title">{denied ? `You cannot open ${props.what}` : `Loading ${props.what} failed`}</p>
      <div class="empty-text">
        <p>{errorText(error)}</p>
        {denied ? <p>It does not exist, or it belongs to somebody else. Check the address and the account that you are signed in with, or ask the owner or an administrator.</p> : null}
        {error instanceof ApiError && error.requestId ? <p class="muted">Request {error.requestId}</p> : null}
      </div>
      <div class="actions">
        {props.retry && !denied ? <Button icon="refresh" onClick={props.retry}>Try again</Button> : null}
        {props.back ? <Link class="button plain" to={props.back.to}>{props.back.text}</Link> : null}
      </div>
    </div>
  );
}

/** A message that stays: why something is so, or what is wrong with a form. */
export function Banner(props: { kind: "info" | "warning" | "error" | "done"; title?: string; children?: ComponentChildren; live?: boolean }) {
  const icons: Record<string, IconName> = { info: "info", warning: "warning", error: "warning", done: "check" };
  return (
    <div class={`banner ${props.kind}`} role={props.live ? (props.kind === "error" ? "alert" : "status") : undefined}>
      <Icon name={icons[props.kind] ?? "info"} />
      <div>
        {props.title ? <strong>{props.title}</strong> : null}
        {props.children ? <div>{props.children}</div> : null}
      </div>
    </div>
  );
}

/** Copies `text`; says so to everybody. */
export function Copy(props: { text: string; what: string; visible?: boolean; kind?: ButtonKind }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    if (!(await toClipboard(props.text))) {
      announce("Copying failed. Select the text and copy it by hand.");
      return;
    }
    setDone(true);
    announce(`${props.what} copied`);
    setTimeout(() => setDone(false), 2000);
  };
  return (
    <Button kind={props.kind ?? "quiet"} small icon={done ? "check" : "copy"} label={props.visible ? `Copy ${props.what}` : `Copy ${props.what}`} title={`Copy ${props.what}`} onClick={copy}>
      {props.visible ? (done ? "Copied" : "Copy") : undefined}
    </Button>
  );
}

async function toClipboard(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without a secure context there is no clipboard interface: use a selection.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "offscreen";
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

export function Code(props: { text: string; what: string }) {
  return (
    <div class="code">
      <pre tabIndex={0} aria-label={props.what}>
        <code>{props.text}</code>
      </pre>
      <Copy text={props.text} what={props.what} visible kind="plain" />
    </div>
  );
}

/** Names and values. */
export function Facts(props: { items: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {props.items.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/**
 * A table that scrolls inside its own frame on narrow screens. Its roles are
 * explicit, because browsers drop them where the style sheet makes cards of rows.
 */
export function Table(props: { label: string; head: ComponentChildren; children: ComponentChildren; class?: string }) {
  return (
    <div class="table-frame" role="group" aria-label={props.label} tabIndex={0}>
      <table class={props.class} role="table">
        <thead role="rowgroup">
          <tr role="row">{props.head}</tr>
        </thead>
        <tbody role="rowgroup">{props.children}</tbody>
      </table>
    </div>
  );
}
