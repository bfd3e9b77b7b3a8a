//! Attachments of pods: ADD, DEL, CHECK, GC, and the leases that make them durable.
//!
//! ```text
//!            ADD                                        loaded from the store
//!             |                                     Adding   Ready   Deleting
//!   Record -> Attach -> Keep -> Confirm -> Ready <-----|-------'        |
//!     |         |        |        |          | DEL  HalfDone            |
//!     '---------'--------'--------'----------'----------|---------------'
//!       failure, or nobody waits: roll back             | DEL, or finished by a retry of ADD
//!                    Mark -> Detach -> Vanish -> Remove -> gone
//!                               '-> who called is answered
//! ```
//!
//! Record, Confirm and Mark write the lease, Keep waits until the addresses of a pod that keeps them are recorded, Attach, Detach (the pod is cut off) and Vanish (its link is deleted, which takes
//! the kernel long) are the kernel's part. A lease is written before its
//! addresses are handed out and removed after the kernel's part is down, so an address is never held twice,
//! whenever the process dies.

pub(crate) mod add;
pub(crate) mod addresses;
pub(crate) mod check;
pub(crate) mod collect;
pub(crate) mod del;
pub(crate) mod deletion;
pub(crate) mod gc;
pub(crate) mod keep;
pub(crate) mod kept;
pub(crate) mod kept_room;
pub(crate) mod kept_told;
pub(crate) mod lifecycle;
pub(crate) mod link;
pub(crate) mod requests;
pub(crate) mod table;
