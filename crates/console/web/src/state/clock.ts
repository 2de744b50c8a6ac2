// The time that countdowns show. Ticks only while somebody looks.
import { useEffect, useReducer } from "preact/hooks";
import { serverNow } from "../api/client.ts";

/** The server's time in milliseconds, updated every `interval` milliseconds. */
export function useNow(interval = 1000): number {
  const [, tick] = useReducer((n: number) => n + 1, 0);
  useEffect(() => {
    const timer = setInterval(() => {
      if (document.visibilityState !== "hidden") tick(undefined as never);
    }, interval);
    const shown = () => tick(undefined as never);
    document.addEventListener("visibilitychange", shown);
    return () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, [interval]);
  return serverNow();
}
