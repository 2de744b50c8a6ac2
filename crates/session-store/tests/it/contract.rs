//! The contract of [`session_store::SessionStore`]: every case runs on the memory store
//! and on a real Redis, with equal results.

mod activity_reports;
mod audit;
mod change_feed;
mod definitions;
mod due_queue;
mod lists;
mod retention;
mod sessions;
mod shared_servers;
mod spark_sessions;
mod tokens;

macro_rules! contract {
    ($($module:ident: $($case:ident),+;)+) => {
        mod memory {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::contract::$module::$case(crate::common::memory()).await;
            })+)+
        }
        mod redis {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                crate::contract::$module::$case(crate::common::redis().await).await;
            })+)+
        }
    };
}

contract! {
    sessions:
        created_sessions_are_read_back,
        a_commit_needs_the_version_before,
        one_of_two_concurrent_commits_wins,
        profile_and_waiting_cause_are_kept,
        history_keeps_the_last_fifty_in_order,
        live_quota_of_an_owner_is_exact,
        live_quota_of_an_organization_is_exact,
        creates_per_minute_are_limited_with_a_retry_time,
        ended_sessions_leave_the_quota_at_once,
        a_repeated_create_returns_the_first_session,
        a_hundred_repeats_at_once_make_one_session;
    due_queue:
        the_longest_due_come_first_over_all_organizations,
        a_lease_that_runs_out_makes_due_again,
        one_owner_has_a_lease_until_it_ends,
        claimers_never_share_a_session,
        setting_due_needs_the_version,
        the_oldest_due_time_is_read_without_a_claim;
    lists:
        every_filter_selects,
        scope_hides_what_a_caller_may_not_see,
        pages_continue_and_end,
        a_page_reads_a_bounded_number_of_records,
        page_tokens_of_others_are_refused,
        clusters_list_their_live_sessions_in_order,
        sessions_are_counted_by_status;
    change_feed:
        the_feed_begins_with_reset,
        every_change_is_seen_once_in_version_order,
        a_reader_that_falls_behind_is_reset;
    spark_sessions:
        settings_are_kept_as_they_were_last,
        settings_beyond_the_bounds_change_nothing,
        one_caller_moves_a_spark_session_to_a_generation;
    tokens:
        tokens_are_recorded_and_listed_oldest_first,
        expired_tokens_make_room,
        expired_tokens_stay_on_record_while_there_is_room,
        revoked_tokens_make_room,
        a_revoked_token_is_listed_until_its_room_is_needed,
        tokens_are_refused_after_close_and_revocation;
    activity_reports:
        a_session_is_busy_until_every_proxy_reports_the_end_of_its_calls,
        the_last_activity_only_rises_and_never_beyond_the_present,
        calls_on_an_earlier_generation_keep_nothing_alive,
        an_amount_is_added_once,
        an_idle_clock_needs_silence_and_nothing_new,
        a_report_and_an_idle_timeout_never_both_win,
        operations_are_listed_while_their_calls_are_open,
        uses_come_in_the_order_they_are_asked_for,
        a_token_is_first_used_once,
        proxies_live_fall_silent_and_are_forgotten,
        a_proxy_lives_by_what_is_written_of_its_report,
        a_repeated_report_is_detected_by_its_number;
    audit:
        every_change_is_in_the_trail_once,
        what_an_idle_clock_decides_is_in_the_trail_too,
        tokens_are_in_the_trail_when_recorded_and_first_used,
        other_records_are_read_in_pages,
        the_trail_is_read_backwards_over_partitions,
        the_trail_of_an_organization_is_read_by_itself,
        one_organization_cannot_turn_over_the_trail_of_another,
        the_export_position_is_stored,
        keys_keep_the_start_of_their_publication,
        the_number_of_stored_keys_is_limited;
    definitions:
        definitions_are_compared_and_set,
        an_organization_defines_within_its_share,
        all_of_an_organizations_definitions_are_read,
        several_are_read_in_their_order,
        kinds_are_apart,
        the_store_has_a_clock_an_epoch_and_a_pulse;
    shared_servers:
        the_first_binder_of_an_id_wins_over_all_organizations,
        one_preparer_at_a_time_makes_a_binding_ready,
        a_preparer_that_is_gone_is_followed_by_the_next,
        the_least_recently_bound_makes_room,
        never_more_than_the_limit_however_many_bind_at_once,
        a_sealed_generation_gets_nothing_more,
        only_the_very_binding_is_given_back,
        sessions_are_placed_on_the_server_with_the_fewest,
        a_server_can_be_kept_to_one_organization;
    retention:
        the_default_limits_are_those_of_the_documentation,
        what_ended_long_ago_is_forgotten_with_all_of_it,
        one_that_lives_or_is_still_due_is_never_forgotten,
        beyond_the_number_the_longest_ended_go_first,
        many_are_forgotten_in_batches_by_whoever_comes;
}
