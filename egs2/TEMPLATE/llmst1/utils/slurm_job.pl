#!/usr/bin/env perl
# What slurm.pl submits: runs the command of one job. Slurm writes the output to the log.
#
#   slurm_job.pl status_directory JOB|"" command argument...
#
# JOB is replaced by the job's number in the array. No shell stands between. The log gets run.pl's head and foot; the
# exit status is written to status_directory/<number>, whole or not at all. SIGTERM is handed to the command.

use strict;
use warnings;
use POSIX ();

my ($directory, $name, @command) = @ARGV;
my $id = $ENV{SLURM_ARRAY_TASK_ID} // 1;
if ($name ne "") { s/$name/$id/g for @command }
# srun takes its processors from here, as of Slurm 22.05.
$ENV{SRUN_CPUS_PER_TASK} //= $ENV{SLURM_CPUS_PER_TASK} if $ENV{SLURM_CPUS_PER_TASK};

$| = 1;
my $slurm_id = $ENV{SLURM_ARRAY_JOB_ID} ? "$ENV{SLURM_ARRAY_JOB_ID}_$id" : $ENV{SLURM_JOB_ID} // "";
print "# @command\n# On " . (POSIX::uname())[1] . " as Slurm job $slurm_id\n# Started at " . localtime() . "\n#\n";
my $status = "$directory/$id";
unlink $status;    # of a run before Slurm queued the job again
my ($start, $pid, $asked) = (time(), undef, 0);
$SIG{TERM} = sub { $asked = 1; kill("TERM", $pid) if $pid };
$pid = fork() // die "slurm_job.pl: cannot fork: $!\n";
if ($pid == 0) {
    $SIG{TERM} = "DEFAULT";
    no warnings "exec";
    exec { $command[0] } @command;
    print STDERR "slurm_job.pl: cannot run $command[0]: $!\n";
    POSIX::_exit(127);
}
kill("TERM", $pid) if $asked;
until (waitpid($pid, 0) == $pid) { }
my $code = ($? & 127) ? 128 + ($? & 127) : $? >> 8;
printf "# Accounting: time=%d\n# Ended (code %d) at %s\n", time() - $start, $code, scalar localtime();
open(my $out, ">", "$status.tmp") or die "slurm_job.pl: cannot write $status.tmp: $!\n";
print $out "$code\n";
close($out) && rename("$status.tmp", $status) or die "slurm_job.pl: cannot write $status: $!\n";
exit $code;
