// One load of data from the API, with its states.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";

export type Loaded<T> =
  | { state: "loading" }
  | { state: "error"; error: unknown }
  | { state: "ready"; data: T };

/** Loads when `key` changes, and again on `reload`; keeps the old data meanwhile. */
export function useLoad<T>(key: string, load: (signal: AbortSignal) => Promise<T>): [Loaded<T>, () => void] {
  const [result, setResult] = useState<Loaded<T>>({ state: "loading" });
  const [round, setRound] = useState(0);
  const latest = useRef(load);
  latest.current = load;
  const shown = useRef(key);
  useEffect(() => {
    const abort = new AbortController();
    if (shown.current !== key) setResult({ state: "loading" });
    shown.current = key;
    latest.current(abort.signal).then(
      (data) => {
        if (!abort.signal.aborted) setResult({ state: "ready", data });
      },
      (error) => {
        if (!abort.signal.aborted) setResult({ state: "error", error });
      },
    );
    return () => abort.abort();
  }, [key, round]);
  return [result, useCallback(() => setRound((n) => n + 1), [])];
}

/** Calls `work` every `ms` while the page is visible; never twice at once. */
export function usePoll(ms: number, enabled: boolean, work: () => Promise<void> | void): void {
  const latest = useRef(work);
  latest.current = work;
  useEffect(() => {
    if (!enabled) return undefined;
    let busy = false;
    const timer = setInterval(async () => {
      if (busy || document.visibilityState === "hidden") return;
      busy = true;
      try {
        await latest.current();
      } catch {
        // The next round tries again; the state of the page names lasting errors.
      } finally {
        busy = false;
      }
    }, ms);
    return () => clearInterval(timer);
  }, [ms, enabled]);
}
