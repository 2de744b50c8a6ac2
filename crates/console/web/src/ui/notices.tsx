// Notices in the corner, and the text for screen readers.
import { announcement, dismiss, notices } from "../state/notices.ts";
import { useStore } from "../state/store.ts";
import { Button } from "./basics.tsx";
import { Icon } from "./icon.tsx";

export function Notices() {
  const list = useStore(notices);
  const text = useStore(announcement);
  return (
    <>
      <div class="offscreen" role="status" aria-live="polite">
        {text}
      </div>
      <div class="notices" role="status" aria-live="polite">
        {list.map((notice) => (
          <div key={notice.id} class={`notice ${notice.kind}`}>
            <Icon name={notice.kind === "done" ? "check" : "warning"} />
            <span>{notice.text}</span>
            <Button kind="quiet" small icon="close" label="Dismiss this message" onClick={() => dismiss(notice.id)} />
          </div>
        ))}
      </div>
    </>
  );
}
