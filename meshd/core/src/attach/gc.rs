//! CNI GC.

use crate::agent::NodeAgent;
use crate::attach::requests::error;
use crate::event::RequestId;
use meshd_model::cni::{Gc, code};

impl NodeAgent {
    pub(crate) fn gc(&mut self, request: RequestId, gc: &Gc) {
        let refused = error(
            code::TRY_AGAIN,
            format!("meshd does not collect the attachments of {} yet", gc.network),
            "nothing was removed",
        );
        self.reply(request, Err(refused));
    }
}
