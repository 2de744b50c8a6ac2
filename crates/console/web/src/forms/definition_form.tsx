// The frame of a form for a definition: it sends, shows errors in place, and
// opens the page of the object afterwards.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { errorText, notify } from "../state/notices.ts";
import { navigate } from "../state/router.ts";
import { Banner, Button, Empty, Link, PageHeading } from "../ui/basics.tsx";
import { problemsOf, type Problems } from "./problems.ts";

export interface DefinitionFormProps {
  /** The verb and the object: "Create cluster". */
  action: string;
  /** Title of the error. */
  failed: string;
  /** Sends the definition; returns the path of the page to open and what was done. */
  send: () => Promise<{ page: string; done: string }>;
  cancel: string;
  children: (problems: Problems) => ComponentChildren;
}

export function DefinitionForm(props: DefinitionFormProps) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const summary = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (error) summary.current?.focus();
  }, [error]);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setError(null);
    try {
      const { page, done } = await props.send();
      notify("done", done);
      navigate(page);
    } catch (cause) {
      setError(cause);
      setBusy(false);
    }
  };
  return (
    <form class="create" onSubmit={submit} noValidate>
      {error ? (
        <div ref={summary} tabIndex={-1}>
          <Banner kind="error" title={props.failed} live>
            {errorText(error)}
          </Banner>
        </div>
      ) : null}
      {props.children(problemsOf(error))}
      <div class="form-actions">
        <Button kind="primary" type="submit" busy={busy}>
          {props.action}
        </Button>
        <Link class="button plain" to={props.cancel}>
          Cancel
        </Link>
      </div>
    </form>
  );
}

/** In place of a form that the caller may not use. */
export function NoPermission(props: { title: string; what: string; who: string; back: { to: string; text: string } }) {
  return (
    <>
      <PageHeading title={props.title} />
      <Empty
        icon="lock"
        title={`You cannot ${props.what}`}
        action={
          <Link class="button plain" to={props.back.to}>
            {props.back.text}
          </Link>
        }
      >
        {props.who} can. Ask one of them, or sign in with another account.
      </Empty>
    </>
  );
}
