// Modal dialogs on the browser's own <dialog>: it keeps the focus inside, closes
// on Escape and gives the focus back.
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { errorText } from "../state/notices.ts";
import { Banner, Button } from "./basics.tsx";

export function Dialog(props: { title: string; onClose: () => void; wide?: boolean; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const opener = document.activeElement;
    dialog.current?.showModal();
    return () => {
      if (opener instanceof HTMLElement && opener.isConnected) opener.focus();
    };
  }, []);
  return (
    <dialog
      ref={dialog}
      class={props.wide ? "wide" : ""}
      aria-labelledby={id}
      onCancel={(event) => {
        event.preventDefault();
        props.onClose();
      }}
    >
      <div class="dialog-head">
        <h2 id={id}>{props.title}</h2>
        <Button kind="quiet" icon="close" label="Close this dialog" title="Close" onClick={props.onClose} />
      </div>
      {props.children}
    </dialog>
  );
}

export interface ConfirmProps {
  title: string;
  children: ComponentChildren;
  /** The verb of the action, as on the button that opened the dialog. */
  action: string;
  danger?: boolean;
  /** A text that must be typed before the action is possible. */
  typed?: string;
  onClose: () => void;
  onConfirm: () => Promise<void>;
}

/** Asks before an action, and shows its error in place. */
export function Confirm(props: ConfirmProps) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const [text, setText] = useState("");
  const id = useId();
  const ready = !props.typed || text === props.typed;
  const run = async (event: Event) => {
    event.preventDefault();
    if (busy || !ready) return;
    setBusy(true);
    setError(null);
    try {
      await props.onConfirm();
      props.onClose();
    } catch (cause) {
      setError(cause);
      setBusy(false);
    }
  };
  return (
    <Dialog title={props.title} onClose={props.onClose}>
      <form onSubmit={run}>
        <div class="dialog-body">
          {props.children}
          {props.typed ? (
            <div class="field">
              <label for={id}>
                Type <code>{props.typed}</code> to confirm
              </label>
              <input id={id} value={text} autocomplete="off" spellcheck={false} onInput={(event) => setText(event.currentTarget.value)} />
            </div>
          ) : null}
          {error ? <Banner kind="error" live>{errorText(error)}</Banner> : null}
        </div>
        <div class="dialog-actions">
          <Button onClick={props.onClose}>Cancel</Button>
          <Button kind={props.danger ? "danger" : "primary"} type="submit" busy={busy} disabled={!ready} autofocus={!props.typed}>
            {props.action}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
