// Sign-in: by the organization's provider, or by the key of a service account.
import { useEffect, useRef, useState } from "preact/hooks";
import { address, ApiError } from "../api/client.ts";
import type { AuthSession } from "../api/types.ts";
import { signIn } from "../state/auth.ts";
import { errorText } from "../state/notices.ts";
import { here } from "../state/router.ts";
import { Banner, Button } from "../ui/basics.tsx";
import { TextField } from "../ui/form.tsx";
import { Mark } from "../ui/navigation.tsx";

/** Where to go after the sign-in: the present page, which a deep link or an expiry has left. */
function returnPath(): string {
  const path = here();
  return path === "/" || path.startsWith("/sign-in") ? "/sessions" : path;
}

export function SignInPage(props: { session: AuthSession; expired: boolean }) {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    document.title = "Sign in · Berth";
    heading.current?.focus({ preventScroll: true });
  }, []);
  const providers = props.session.methods.filter((method) => method.id !== "key");
  const byKey = props.session.methods.some((method) => method.id === "key");
  const problem = new URLSearchParams(location.search).get("error");
  return (
    <main class="sign-in" id="content">
      <div class="sign-in-card">
        <div class="sign-in-brand">
          <Mark size={40} />
          <div>
            <h1 ref={heading} tabIndex={-1}>
              Sign in to Berth
            </h1>
            <p class="muted">Private Spark Connect sessions</p>
          </div>
        </div>
        {props.expired ? (
          <Banner kind="warning" title="Your sign-in has expired" live>
            Sign in again; you return to the page that you were on.
          </Banner>
        ) : null}
        {problem ? <Banner kind="error" title="The sign-in failed" live>{problem}</Banner> : null}
        {providers.map((method) => (
          <a key={method.id} class="button primary block" href={address(`auth/login/${encodeURIComponent(method.id)}`, { return: returnPath() })}>
            {method.label || `Sign in with ${method.id}`}
          </a>
        ))}
        {providers.length > 0 && byKey ? <div class="or">or</div> : null}
        {byKey ? <KeyForm main={providers.length === 0} /> : null}
        {providers.length === 0 && !byKey ? (
          <Banner kind="warning" title="No way to sign in is set up">
            Ask your platform team: the console has neither a provider nor service-account keys enabled.
          </Banner>
        ) : null}
      </div>
    </main>
  );
}

function KeyForm(props: { main: boolean }) {
  const [key, setKey] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  const submit = async (event: Event) => {
    event.preventDefault();
    if (busy) return;
    if (key.trim() === "") {
      setError("Enter a key. It begins with berth_sa_.");
      return;
    }
    setBusy(true);
    setError("");
    try {
      await signIn(key.trim());
    } catch (cause) {
      const rejected = cause instanceof ApiError && cause.status === 401;
      setError(rejected ? "Berth does not accept this key. Check that it is complete, or ask your platform team for a new one." : errorText(cause));
      setBusy(false);
    }
  };
  return (
    <form onSubmit={submit} noValidate>
      <TextField
        label="Service-account key"
        name="key"
        type="password"
        value={key}
        onValue={setKey}
        mono
        error={error || undefined}
        hint="It begins with berth_sa_. On your own machine, make run prints it."
      />
      {error ? (
        <div class="offscreen" role="alert">
          {error}
        </div>
      ) : null}
      <div class="form-actions">
        <Button kind={props.main ? "primary" : "plain"} type="submit" busy={busy}>
          Sign in with the key
        </Button>
      </div>
    </form>
  );
}
